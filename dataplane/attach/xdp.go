// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// pinXDP are the links before an uplink's other programs.
const pinXDP = "xdp-"

// XDP attaches the program that runs in the driver of an uplink, or replaces
// it. A driver that has no place for it: ErrNotSupported.
func (k *Kernel) XDP(ifindex int) error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	pin := k.linkPin(pinXDP + strconv.Itoa(ifindex))
	l, err := pinnedXDP(pin, ifindex)
	if err != nil {
		return err
	}
	if l != nil {
		if err := errors.Join(l.Update(k.XdpNet), l.Close()); err != nil {
			return fmt.Errorf("update XDP of interface %d: %w", ifindex, err)
		}
		return nil
	}
	l, err = link.AttachXDP(link.XDPOptions{Program: k.XdpNet, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach XDP to interface %d: %w", ifindex, err)
	}
	if err := l.Pin(pin); err != nil {
		return errors.Join(fmt.Errorf("pin XDP of interface %d: %w", ifindex, err), l.Close())
	}
	return l.Close()
}

// pinnedXDP opens the pinned link of an interface; nil when there is none. A pin
// whose interface is gone, or is another one by now, is removed.
func pinnedXDP(pin string, ifindex int) (link.Link, error) {
	l, err := link.LoadPinnedLink(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w", pin, err)
	}
	info, err := l.Info()
	if err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex) {
		return l, nil
	}
	return nil, errors.Join(l.Unpin(), l.Close())
}

// ForgetXDP takes the program off an interface: the link ends with its pin.
func (k *Kernel) ForgetXDP(ifindex int) error {
	err := os.Remove(k.linkPin(pinXDP + strconv.Itoa(ifindex)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove XDP of interface %d: %w", ifindex, err)
	}
	return nil
}

// AttachedXDP are the interfaces that have a pinned link of XDP.
func (k *Kernel) AttachedXDP() ([]int, error) { return k.pins(pinXDP) }

// idleXDP puts a program that does nothing in the place of those of XDP: they
// work with tables that others are about to leave.
func (k *Kernel) idleXDP(idle *ebpf.Program) error {
	all, err := k.AttachedXDP()
	errs := []error{err}
	for _, idx := range all {
		l, err := pinnedXDP(k.linkPin(pinXDP+strconv.Itoa(idx)), idx)
		if err != nil || l == nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, l.Update(idle), l.Close())
	}
	return errors.Join(errs...)
}

// Driver is the kind of an interface as the kernel names it: "veth", "bond";
// "device" is one of hardware.
func Driver(ifindex int) (string, error) {
	h := &netlink.Handle{}
	l, err := h.LinkByIndex(ifindex)
	if err != nil {
		return "", fmt.Errorf("find interface %d: %w", ifindex, err)
	}
	return strings.ToLower(l.Type()), nil
}
