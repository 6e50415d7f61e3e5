// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// Services of a node are served by us or by kube-proxy, and each can follow the
// other while connections are open:
//
//   - dataplane.services false: new flows go through the kernel, and so past
//     kube-proxy's rules in both directions. Flows that have records keep them.
//   - true, and kube-proxy's rules are there: new flows go on through the kernel
//     until the services are known. Then what the kernel translates gets records
//     of ours, and from then on everything is ours.

// enterMode decides at the start, before any program is attached.
func (d *Dataplane) enterMode(ctx context.Context) error {
	d.mode = maps.NewMode(d.kernel.Modes)
	if !d.cfg.Services {
		return d.mode.Set(bpf.DatapathModeMODE_KERNEL)
	}
	now, err := d.mode.Get()
	if err != nil {
		return err
	}
	if now == bpf.DatapathModeMODE_OURS && d.table.empty() {
		// A node that has not served yet, as far as the maps know.
		now = bpf.DatapathModeMODE_KERNEL
	}
	if now == bpf.DatapathModeMODE_OURS {
		return nil
	}
	found, err := attach.KubeProxy()
	if err != nil {
		d.log.WarnContext(ctx, "look for kube-proxy", "err", err)
	}
	if len(found) == 0 {
		return d.mode.Set(bpf.DatapathModeMODE_OURS)
	}
	d.log.InfoContext(ctx, "kube-proxy serves until the services are known", "found", found)
	return d.mode.Set(bpf.DatapathModeMODE_KERNEL)
}

// takeFlows makes the services ours, once all of them are programmed. What the
// kernel translates is copied in between two changes of mode: after the first
// no connection begins there any more. The caller holds mu and svcMu.
func (d *Dataplane) takeFlows(ctx context.Context) error {
	now, err := d.mode.Get()
	if err != nil || now == bpf.DatapathModeMODE_OURS || !d.cfg.Services {
		return err
	}
	if err := d.mode.Set(bpf.DatapathModeMODE_SWITCH); err != nil {
		return err
	}
	taken, err := d.copyFlows()
	if err != nil {
		return errors.Join(err, d.mode.Set(bpf.DatapathModeMODE_KERNEL))
	}
	if err := d.mode.Set(bpf.DatapathModeMODE_OURS); err != nil {
		return err
	}
	// UDP that began meanwhile.
	more, err := d.copyFlows()
	err = errors.Join(err, d.keepFlows())
	d.log.InfoContext(ctx, "services were taken over from kube-proxy", "flows", taken+more)
	return err
}

// copyFlows gives records to the flows of pods, and from outside, that the
// kernel translates for a service of ours. The node's own stay with the kernel:
// their packets go through it in any case.
func (d *Dataplane) copyFlows() (int, error) {
	flows, err := attach.TranslatedFlows()
	if err != nil {
		return 0, err
	}
	own := d.host.Addrs()
	taken := 0
	var errs []error
	for _, f := range flows {
		orig := maps.Tuple{Src: f.Src, Dst: f.Dst, Proto: f.Proto}
		id, ok := d.serviceAt(orig, own)
		if !ok || slices.Contains(own, f.Src.Addr()) {
			continue
		}
		n := maps.NewFlow{
			Orig:    orig,
			Other:   maps.Tuple{Src: f.ToSrc, Dst: f.ToDst, Proto: f.Proto},
			Service: id,
		}
		if d.owners[f.Src.Addr()] == "" {
			n.Outside = d.uplinkTo(f.Src.Addr())
		}
		made, err := d.flows.Adopt(n)
		errs = append(errs, err)
		if made {
			taken++
		}
	}
	return taken, errors.Join(errs...)
}

// keepFlows makes what pods began through the kernel ours for good: it does not
// see their packets from now on, and would take later ones for invalid. A flow
// to a service that the kernel has forgotten begins anew.
func (d *Dataplane) keepFlows() error {
	own := d.host.Addrs()
	var keep, forgotten []maps.Flow
	err := d.flows.Each(func(f maps.Flow) bool {
		if !f.Is(bpf.DatapathCtFlagsCT_KERNEL) {
			return true
		}
		if _, service := d.serviceAt(f.Orig, own); service && f.Untranslated() {
			forgotten = append(forgotten, f)
		} else {
			keep = append(keep, f)
		}
		return true
	})
	err = errors.Join(err, d.flows.Delete(forgotten))
	for _, f := range keep {
		err = errors.Join(err, d.flows.Mark(f, 0, bpf.DatapathCtFlagsCT_KERNEL|bpf.DatapathCtFlagsCT_WAITS))
	}
	return err
}

// serviceAt is the number of the service that a flow addresses.
func (d *Dataplane) serviceAt(f maps.Tuple, own []netip.Addr) (uint32, bool) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	at := []netip.Addr{f.Dst.Addr()}
	if slices.Contains(own, f.Dst.Addr()) {
		at = append(at, map[bool]netip.Addr{true: any4, false: any6}[f.Dst.Addr().Is4()])
	}
	for _, a := range at {
		for _, scope := range []service.Scope{service.Cluster, service.Outside} {
			key := keyOf(service.Frontend{Addr: a, Port: f.Dst.Port(), Proto: f.Proto, Scope: scope})
			if front := d.table.fronts[key]; front != nil {
				return front.value.Id, true
			}
		}
	}
	return 0, false
}

// uplinkTo is an uplink that answers to an address leave by: the one whose link
// it is on, else any.
func (d *Dataplane) uplinkTo(a netip.Addr) int {
	best := 0
	for _, i := range d.host.Interfaces {
		if _, ok := d.uplinks[i.Index]; !ok {
			continue
		}
		if slices.ContainsFunc(i.Links, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return i.Index
		}
		if best == 0 || i.Default {
			best = i.Index
		}
	}
	return best
}

// empty says whether an earlier daemon left no frontend.
func (t *table) empty() bool { return len(t.left) == 0 }
