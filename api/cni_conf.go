// SPDX-License-Identifier: Apache-2.0

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	types "github.com/containernetworking/cni/pkg/types"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// cniConf is a network configuration as a runtime passes it to the plugin.
type cniConf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	PrevResult    json.RawMessage `json:"prevResult"`
	DNS           types.DNS       `json:"dns"`
	RuntimeConfig runtimeConfig   `json:"runtimeConfig"`
	Args          struct {
		CNI struct {
			IPs []string `json:"ips"`
			MAC string   `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	// ValidAttachments of GC, and the name it had in libcni 1.2; nil: absent.
	ValidAttachments *json.RawMessage `json:"cni.dev/valid-attachments"`
	Attachments      *json.RawMessage `json:"cni.dev/attachments"`
}

// runtimeConfig has the capabilities (CNI conventions) that the conflist declares.
type runtimeConfig struct {
	PortMappings []struct {
		HostPort      uint16 `json:"hostPort"`
		ContainerPort uint16 `json:"containerPort"`
		Protocol      string `json:"protocol"`
		HostIP        string `json:"hostIP"`
	} `json:"portMappings"`
	Bandwidth   cni.Bandwidth     `json:"bandwidth"`
	IPs         []string          `json:"ips"`
	MAC         string            `json:"mac"`
	IPRanges    [][]ipRange       `json:"ipRanges"`
	Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	DNS         *struct {
		Servers  []string `json:"servers"`
		Searches []string `json:"searches"`
		Options  []string `json:"options"`
	} `json:"dns"`
}

// ipRange is one element of the capability ipRanges. A gateway in it has no
// meaning here: that of every pod is link-local.
type ipRange struct {
	Subnet     netip.Prefix `json:"subnet"`
	RangeStart netip.Addr   `json:"rangeStart"`
	RangeEnd   netip.Addr   `json:"rangeEnd"`
}

// cniArgs are the keys of CNI_ARGS that are understood.
type cniArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString //nolint:revive // the reflection of LoadArgs takes the field's name
	K8S_POD_NAME      types.UnmarshallableString //nolint:revive // see above
	K8S_POD_UID       types.UnmarshallableString //nolint:revive // see above
	IP                types.UnmarshallableString
	MAC               types.UnmarshallableString

	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString //nolint:revive // see above
}

func (c cniCall) key() cni.Key { return cni.Key{ContainerID: c.ContainerID, IfName: c.IfName} }

// request reads everything that a call of ADD may say. It reports all faults at once.
func (c cniCall) request() (cni.Request, error) {
	rc := c.conf.RuntimeConfig
	var args cniArgs
	if err := types.LoadArgs(c.Args, &args); err != nil {
		return cni.Request{}, &shim.Error{Code: shim.CodeEnvironment, Msg: "CNI_ARGS cannot be read", Details: err.Error()}
	}
	req := cni.Request{
		Key: c.key(), Network: c.conf.Name, NetNS: c.NetNS, Bandwidth: rc.Bandwidth,
		Pod: cni.Pod{
			Namespace: string(args.K8S_POD_NAMESPACE), Name: string(args.K8S_POD_NAME), UID: string(args.K8S_POD_UID),
			Annotations: rc.Annotations,
		},
	}
	var errs []error
	var err error
	req.Addrs, err = parseAddrs(firstOf(rc.IPs, c.conf.Args.CNI.IPs, splitList(string(args.IP))))
	errs = append(errs, err)
	req.MAC, err = parseMAC(rc.MAC, c.conf.Args.CNI.MAC, string(args.MAC))
	errs = append(errs, err)
	req.PortMappings, err = c.portMappings()
	errs = append(errs, err)
	req.Ranges, err = parseRanges(rc.IPRanges)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return cni.Request{}, &shim.Error{Code: shim.CodeConfig, Msg: "the request is malformed", Details: err.Error()}
	}
	return req, nil
}

func (c cniCall) portMappings() (out []cni.PortMapping, err error) {
	var errs []error
	for i, m := range c.conf.RuntimeConfig.PortMappings {
		pm := cni.PortMapping{HostPort: m.HostPort, ContainerPort: m.ContainerPort, Protocol: strings.ToLower(m.Protocol)}
		if pm.Protocol == "" {
			pm.Protocol = "tcp"
		}
		if m.HostIP != "" {
			ip, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				errs = append(errs, fmt.Errorf("portMappings[%d].hostIP: %w", i, err))
			}
			if !ip.IsUnspecified() {
				pm.HostIP = ip.Unmap()
			}
		}
		if m.HostPort != 0 { // 0 means that the port is not mapped
			out = append(out, pm)
		}
	}
	return out, errors.Join(errs...)
}

// parseRanges reads ranges: a subnet, or a part of it.
func parseRanges(sets [][]ipRange) (out [][]ipam.Stretch, err error) {
	var errs []error
	for i, set := range sets {
		var list []ipam.Stretch
		for j, r := range set {
			if !r.Subnet.IsValid() {
				errs = append(errs, fmt.Errorf("ipRanges[%d][%d].subnet: must be a CIDR", i, j))
				continue
			}
			s := ipam.StretchOf(r.Subnet)
			if r.RangeStart.IsValid() {
				s.First = r.RangeStart
			}
			if r.RangeEnd.IsValid() {
				s.Last = r.RangeEnd
			}
			if !r.Subnet.Contains(s.First) || !r.Subnet.Contains(s.Last) {
				errs = append(errs, fmt.Errorf("ipRanges[%d][%d]: %s to %s is not in %s", i, j, s.First, s.Last, r.Subnet))
			}
			list = append(list, s)
		}
		out = append(out, list)
	}
	return out, errors.Join(errs...)
}

// firstOf returns the first list that is not empty.
func firstOf(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// parseAddrs reads addresses with or without a prefix length.
func parseAddrs(list []string) (out []netip.Addr, err error) {
	var errs []error
	for _, s := range list {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if strings.Contains(s, "/") {
			var p netip.Prefix
			p, err = netip.ParsePrefix(strings.TrimSpace(s))
			a = p.Addr()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("ips: %w", err))
			continue
		}
		out = append(out, a.Unmap())
	}
	return out, errors.Join(errs...)
}

func parseMAC(candidates ...string) (net.HardwareAddr, error) {
	for _, s := range candidates {
		if s != "" {
			return net.ParseMAC(s)
		}
	}
	return nil, nil
}

// prevResult returns the result of the plugins before this one; nil if none.
func (c cniConf) prevResult() (*cnitypes.Result, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return nil, nil //nolint:nilnil // the first plugin of a chain has none
	}
	raw, err := create.Create(c.CNIVersion, c.PrevResult)
	if err != nil {
		return nil, &shim.Error{Code: shim.CodeDecode, Msg: "prevResult cannot be read", Details: err.Error()}
	}
	res, err := cnitypes.NewResultFromResult(raw)
	if err != nil {
		return nil, &shim.Error{Code: shim.CodeDecode, Msg: "prevResult cannot be read", Details: err.Error()}
	}
	return res, nil
}

func (c cniConf) dns() types.DNS {
	if d := c.RuntimeConfig.DNS; d != nil {
		return types.DNS{Nameservers: d.Servers, Search: d.Searches, Options: d.Options}
	}
	return c.DNS
}

// validAttachments of GC. Without the key nothing is collected: its absence is
// more likely a mistake than an empty node.
func (c cniConf) validAttachments() ([]cni.Key, error) {
	raw := c.ValidAttachments
	if raw == nil {
		raw = c.Attachments
	}
	if raw == nil {
		return nil, &shim.Error{Code: shim.CodeConfig, Msg: "GC needs cni.dev/valid-attachments in the network configuration"}
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(*raw, &list); err != nil {
		return nil, &shim.Error{Code: shim.CodeDecode, Msg: "cni.dev/valid-attachments cannot be read", Details: err.Error()}
	}
	keys := make([]cni.Key, 0, len(list))
	for _, a := range list {
		keys = append(keys, cni.Key{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return keys, nil
}

// addrsOf returns the addresses that a result has on one interface of the pod.
func addrsOf(res *cnitypes.Result, ifName, netns string) (out []netip.Addr, err error) {
	for _, ip := range res.IPs {
		if ip.Interface == nil {
			continue
		}
		if i := *ip.Interface; i < 0 || i >= len(res.Interfaces) {
			return nil, &shim.Error{Code: shim.CodeConfig, Msg: fmt.Sprintf("prevResult: address %s is on interface %d of %d", ip.Address.IP, i, len(res.Interfaces))}
		}
		if on := res.Interfaces[*ip.Interface]; on.Name != ifName || on.Sandbox != netns {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
