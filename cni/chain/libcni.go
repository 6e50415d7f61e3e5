// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/conflist"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// inProcess execs plugins, but ours it calls.
type inProcess struct {
	*invoke.DefaultExec
	call func(context.Context, shim.Call) ([]byte, error)
}

var _ invoke.Exec = (*inProcess)(nil)

// ownPath stands for the program of our plugin; no file has this name.
const ownPath = "\x00" + conflist.Plugin

// FindInPath implements invoke.Exec.
func (e *inProcess) FindInPath(plugin string, paths []string) (string, error) {
	if plugin == conflist.Plugin && e.call != nil {
		return ownPath, nil
	}
	return e.DefaultExec.FindInPath(plugin, paths)
}

// ExecPlugin implements invoke.Exec.
func (e *inProcess) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if path != ownPath {
		return e.RawExec.ExecPlugin(ctx, path, stdin, environ)
	}
	env := map[string]string{}
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	out, err := e.call(ctx, shim.Call{
		Verb: env["CNI_COMMAND"], ContainerID: env["CNI_CONTAINERID"], NetNS: env["CNI_NETNS"],
		IfName: env["CNI_IFNAME"], Args: env["CNI_ARGS"], Config: stdin,
	})
	if se, ok := errors.AsType[*shim.Error](err); ok {
		return nil, types.NewError(uint(se.Code), se.Msg, se.Details)
	}
	return out, err
}

// Decode implements invoke.Exec.
func (e *inProcess) Decode(b []byte) (version.PluginInfo, error) {
	return (&version.PluginDecoder{}).Decode(b)
}

// runtimeConf says to libcni what containerd would say.
func runtimeConf(req cni.Request) *libcni.RuntimeConf {
	args := [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", req.Pod.Namespace},
		{"K8S_POD_NAME", req.Pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", req.ContainerID},
		{"K8S_POD_UID", req.Pod.UID},
	}
	caps := map[string]any{
		"io.kubernetes.cri.pod-annotations": maps.Clone(req.Pod.Annotations),
	}
	if len(req.PortMappings) > 0 {
		caps["portMappings"] = portMappings(req.PortMappings)
	}
	if req.Bandwidth != (cni.Bandwidth{}) {
		caps["bandwidth"] = bandwidth(req.Bandwidth)
	}
	if len(req.Addrs) > 0 {
		var ips []string
		for _, a := range req.Addrs {
			ips = append(ips, a.String())
		}
		caps["ips"] = ips
	}
	if len(req.MAC) > 0 {
		caps["mac"] = req.MAC.String()
	}
	if req.CgroupPath != "" {
		caps["cgroupPath"] = req.CgroupPath
	}
	if d := req.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		caps["dns"] = map[string][]string{"servers": d.Servers, "searches": d.Searches, "options": d.Options}
	}
	return &libcni.RuntimeConf{
		ContainerID: req.ContainerID, NetNS: req.NetNS, IfName: req.IfName, Args: args, CapabilityArgs: caps,
	}
}

func portMappings(list []cni.PortMapping) (out []map[string]any) {
	for _, m := range list {
		pm := map[string]any{
			"hostPort": int(m.HostPort), "containerPort": int(m.ContainerPort), "protocol": m.Protocol,
		}
		if m.HostIP.IsValid() {
			pm["hostIP"] = m.HostIP.String()
		}
		out = append(out, pm)
	}
	return out
}

// noBurst is the burst that other runtimes give where a pod says only a rate:
// the bandwidth plugin refuses a rate without a burst.
const noBurst = math.MaxUint32

// bandwidth has a burst for each rate, which the bandwidth plugin insists on.
func bandwidth(b cni.Bandwidth) map[string]uint64 {
	out := map[string]uint64{}
	add := func(name string, rate, burst uint64) {
		if rate == 0 {
			return
		}
		if burst == 0 {
			burst = noBurst
		}
		out[name+"Rate"], out[name+"Burst"] = rate, burst
	}
	add("ingress", b.IngressRate, b.IngressBurst)
	add("egress", b.EgressRate, b.EgressBurst)
	return out
}

// resultOf reads what the plugins answered: addresses on the pod's interface,
// or those on no particular one (before CNI 0.3 results did not say).
func resultOf(req cni.Request, raw types.Result) (*cni.Result, error) {
	r, err := cnitypes.NewResultFromResult(raw)
	if err != nil {
		return nil, fmt.Errorf("read the plugins' result: %w", err)
	}
	res := &cni.Result{Key: req.Key, NetNS: req.NetNS}
	for _, i := range r.Interfaces {
		mac, _ := net.ParseMAC(i.Mac) // plugins may leave it out
		switch {
		case i.Sandbox == "" && res.HostIfName == "":
			res.HostIfName, res.HostMAC = i.Name, mac
		case i.Sandbox != "" && i.Name == req.IfName:
			res.MAC, res.MTU = mac, i.Mtu
		}
	}
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		ones, _ := ip.Address.Mask.Size()
		gw, _ := netip.AddrFromSlice(ip.Gateway)
		res.Addrs = append(res.Addrs, netip.PrefixFrom(a.Unmap(), ones))
		res.Gateways = append(res.Gateways, gw.Unmap())
	}
	if len(res.Addrs) == 0 {
		return nil, errors.New("the plugins gave the pod no address")
	}
	return res, nil
}

// collectForeign is GC of the network in force, if it is a foreign one. What
// its plugins cannot collect is logged: nobody here can do more about it.
func (c *Chain) collectForeign(ctx context.Context, valid []cni.Key) {
	list, err := c.current(ctx)
	if err != nil || c.isOwn(list) {
		return
	}
	args := libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, k := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: k.ContainerID, IfName: k.IfName})
	}
	if err := c.cni.GCNetworkList(ctx, list, &args); err != nil {
		c.log.WarnContext(ctx, "plugins did not collect", "network", list.Name, "err", err)
	}
}

// decode is json.Unmarshal with the object's name in the error.
func decode(what string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read record of %s: %w", what, err)
	}
	return nil
}
