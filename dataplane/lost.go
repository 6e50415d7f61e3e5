// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// lostBackend is a backend that a service does not have any more. UDP flows
// leave it at once: nobody would tell the client that it is gone. TCP
// connections stay as long as the backend may want to finish them; when it is
// gone for good they are reset, if the configuration says so.
type lostBackend struct {
	service uint32
	proto   uint8
	at      netip.AddrPort
}

// lost are the backends that an owner has and will not have: those of UDP, and
// with resets those of TCP.
func (t *table) lost(old *owned, owner string, entries []service.Entry) []lostBackend {
	want := map[maps.ServiceKey]service.Entry{}
	for _, e := range entries {
		want[keyOf(e.Frontend)] = e
	}
	var out []lostBackend
	for _, key := range old.fronts {
		f := t.fronts[key]
		now, stays := want[key]
		if f == nil || f.owner != owner || key.Proto != service.UDP && (key.Proto != service.TCP || !t.resets || !stays) {
			continue
		}
		had := old.backendsOf(key, f)
		if slices.Equal(had, now.Backends) {
			continue
		}
		has := make(map[service.Backend]bool, len(now.Backends))
		for _, b := range now.Backends {
			has[b] = true
		}
		for _, b := range now.Draining {
			has[b] = has[b] || key.Proto == service.TCP
		}
		for _, b := range had {
			if !has[b] {
				out = append(out, lostBackend{f.value.Id, key.Proto, netip.AddrPortFrom(b.Addr, b.Port)})
			}
		}
	}
	return out
}

// backendsOf are those that a frontend may have connections to.
func (o *owned) backendsOf(key maps.ServiceKey, f *front) []service.Backend {
	var out []service.Backend
	if f.value.Count > 0 {
		i := slices.IndexFunc(o.slices, func(s *slice) bool { return s.base == f.value.Base })
		if i >= 0 {
			out = o.slices[i].backends
		}
	}
	if key.Proto == service.TCP && len(o.draining) > 0 {
		out = slices.Concat(out, o.draining)
	}
	return out
}

// stranded says whether a flow goes to a backend that its service has lost.
func stranded(f maps.Flow, lost map[lostBackend]bool) bool {
	if len(lost) == 0 || f.Service == 0 {
		return false
	}
	p := f.Orig.Proto
	return lost[lostBackend{f.Service, p, f.Other.Dst}] || lost[lostBackend{f.Service, p, f.Orig.Dst}]
}

// abandon forgets UDP flows to backends that are lost, and marks TCP
// connections: their next packet, of either side, is answered with a RST.
func (d *Dataplane) abandon(flows []maps.Flow) error {
	var udp []maps.Flow
	var errs []error
	for _, f := range flows {
		if f.Orig.Proto != protoTCP {
			udp = append(udp, f)
			continue
		}
		errs = append(errs, d.flows.Mark(f, bpf.DatapathCtFlagsCT_RESET|bpf.DatapathCtFlagsCT_RST, 0))
	}
	return errors.Join(append(errs, d.flows.Delete(udp))...)
}

// disconnect ends sockets of the node that were given a backend which is lost:
// no packet of theirs is translated, so they would stay with it.
func (d *Dataplane) disconnect(lost map[lostBackend]bool) error {
	var errs []error
	for _, proto := range []uint8{protoTCP, protoUDP} {
		gone := map[netip.AddrPort]bool{}
		for l := range lost {
			if l.proto == proto {
				gone[l.at] = true
			}
		}
		if len(gone) == 0 {
			continue
		}
		all, err := attach.Sockets(proto)
		errs = append(errs, err)
		for _, s := range all {
			if !gone[s.Remote] {
				continue
			}
			id, err := d.sockets.ServiceOf(s.Cookie, s.Remote)
			if err == nil && lost[lostBackend{id, proto, s.Remote}] {
				err = s.Destroy()
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
