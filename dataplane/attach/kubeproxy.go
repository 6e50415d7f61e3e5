// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// proxyChain is in the nat table of every iptables that kube-proxy wrote to,
// and proxyTable is the table of its nftables mode.
const (
	proxyChain = "KUBE-SERVICES"
	proxyTable = "kube-proxy"
)

// KubeProxy names what kube-proxy has in the network namespace of the calling
// thread, whether it runs or left it behind; empty: nothing.
func KubeProxy() ([]string, error) {
	var out []string
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("list nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == proxyTable {
			out = append(out, fmt.Sprintf("nftables table %s %s", familyName(t.Family), proxyTable))
		}
		if t.Name != "nat" {
			continue
		}
		if chain, err := c.ListChain(t, proxyChain); err == nil && chain != nil {
			out = append(out, fmt.Sprintf("iptables chain %s (nft, %s)", proxyChain, familyName(t.Family)))
		}
	}
	for _, v4 := range []bool{true, false} {
		if legacyHas(v4, proxyChain) {
			out = append(out, fmt.Sprintf("iptables chain %s (legacy, %s)", proxyChain, map[bool]string{true: "ip", false: "ip6"}[v4]))
		}
	}
	return out, nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	default:
		return "inet"
	}
}

// The sizes of struct ipt_getinfo and of the head of struct ipt_get_entries
// (linux/netfilter_ipv4/ip_tables.h), and the options that read them.
const (
	legacyInfo     = 84
	legacyHead     = 40
	legacyGetInfo  = 64
	legacyGetTable = 65
)

// legacyHas looks for a chain in the nat table of the iptables from before
// nftables. Asking does not make the kernel create the table: without a rule
// there is nothing to find, and no error worth a word.
func legacyHas(v4 bool, chain string) bool {
	family, level := unix.AF_INET, unix.IPPROTO_IP
	names := "/proc/thread-self/net/ip_tables_names"
	if !v4 {
		family, level = unix.AF_INET6, unix.IPPROTO_IPV6
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	if !fileHas(names, "nat") {
		return false
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // only looked at
	info := make([]byte, legacyInfo)
	copy(info, "nat")
	if err := getsockopt(fd, level, legacyGetInfo, info); err != nil {
		return false
	}
	size := binary.NativeEndian.Uint32(info[legacyInfo-4:])
	table := make([]byte, legacyHead+int(size))
	copy(table, "nat")
	binary.NativeEndian.PutUint32(table[32:], size)
	if err := getsockopt(fd, level, legacyGetTable, table); err != nil {
		return false
	}
	return bytes.Contains(table, append([]byte(chain), 0))
}

func getsockopt(fd, level, name int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// KernelFlow is a flow that the kernel's connection tracking translates.
type KernelFlow struct {
	Proto uint8
	// Src and Dst are as the client sends, ToSrc and ToDst as it goes on.
	Src, Dst, ToSrc, ToDst netip.AddrPort
}

// TranslatedFlows are the flows of TCP, UDP and SCTP whose destination the
// kernel of the calling thread's namespace translates.
func TranslatedFlows() ([]KernelFlow, error) {
	var out []KernelFlow
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			return nil, fmt.Errorf("list the kernel's flows: %w", err)
		}
		for _, f := range list {
			k := KernelFlow{
				Proto: f.Forward.Protocol,
				Src:   addrPort(f.Forward.SrcIP, f.Forward.SrcPort), Dst: addrPort(f.Forward.DstIP, f.Forward.DstPort),
				ToSrc: addrPort(f.Reverse.DstIP, f.Reverse.DstPort), ToDst: addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort),
			}
			if k.Dst != k.ToDst && (k.Proto == unix.IPPROTO_TCP || k.Proto == unix.IPPROTO_UDP || k.Proto == unix.IPPROTO_SCTP) {
				out = append(out, k)
			}
		}
	}
	return out, nil
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}
