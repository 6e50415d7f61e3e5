// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/attach"
	dpmaps "github.com/nodeagent/nodeagent/dataplane/maps"
)

// Modes of a peer.
const (
	modeNative = "native"
	modeVXLAN  = "vxlan"
)

// UpdatePeers replaces the set of other nodes. Peers that did not change are
// not touched. A peer whose ranges overlap with those of another one, or ours,
// is reported and left out of them; the others are in place all the same.
func (d *Dataplane) UpdatePeers(_ context.Context, peers []Peer) error {
	next := make(map[string]Peer, len(peers))
	var errs []error
	for _, p := range peers {
		if err := p.validate(); err != nil {
			errs = append(errs, err)
		}
		next[p.Name] = p
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers, d.peersKnown = next, true
	if !d.started {
		return nil
	}
	return d.syncRoutes()
}

// paths is what lies behind addresses that are not of this node, for the
// programs and for the kernel.
type paths struct {
	bpf    map[netip.Prefix]dpmaps.Route
	kernel map[netip.Prefix]attach.PeerRoute
	errs   []error
}

// syncRoutes writes the paths. Those that an earlier daemon wrote stay until
// the peers are known. The caller holds mu.
func (d *Dataplane) syncRoutes() error {
	p := paths{bpf: map[netip.Prefix]dpmaps.Route{}, kernel: map[netip.Prefix]attach.PeerRoute{}}
	for _, c := range d.node.NonMasqueradeCIDRs {
		p.bpf[c.Masked()] = dpmaps.Route{Kind: bpf.DatapathRouteKindROUTE_PLAIN}
	}
	for _, c := range d.node.PodCIDRs {
		p.bpf[c.Masked()] = dpmaps.Route{Kind: bpf.DatapathRouteKindROUTE_LOCAL}
	}
	if err := d.syncTunnel(); err != nil {
		p.errs = append(p.errs, err)
	}
	d.under = map[netip.Addr]dpmaps.Under{}
	var err error
	d.claims, err = d.claim()
	p.errs = append(p.errs, err)
	for _, name := range slices.Sorted(maps.Keys(d.peers)) {
		d.addPeer(&p, d.peers[name])
	}
	d.watchFor()
	return errors.Join(append(p.errs,
		d.routes.Sync(p.bpf, d.peersKnown),
		d.peerRoutes.Sync(p.kernel, d.peersKnown),
		// Short cuts were opened for the node that a pod was behind.
		d.bumpEpoch())...)
}

// addPeer adds the paths to a peer's pods and to itself.
func (d *Dataplane) addPeer(p *paths, peer Peer) {
	mode := d.modeOf(peer)
	for _, a := range peer.Addrs {
		host := netip.PrefixFrom(a, a.BitLen())
		if mode == modeVXLAN {
			d.addTunnel(p, peer, host, false)
		} else {
			p.bpf[host] = d.led(peer, dpmaps.Route{Kind: bpf.DatapathRouteKindROUTE_PLAIN})
		}
	}
	for _, c := range peer.PodCIDRs {
		c = c.Masked()
		if d.claims[c] != peer.Name {
			continue // refused
		}
		if mode == modeVXLAN {
			d.addTunnel(p, peer, c, true)
			continue
		}
		idx, via := d.nextHop(peer, c.Addr().Is4())
		if idx == 0 {
			// The fabric routes it; the kernel knows where to.
			p.bpf[c] = d.led(peer, dpmaps.Route{Kind: bpf.DatapathRouteKindROUTE_PLAIN})
			continue
		}
		p.bpf[c] = d.led(peer, dpmaps.Route{Kind: bpf.DatapathRouteKindROUTE_NATIVE, IfIndex: idx, Next: via})
		p.kernel[c] = attach.PeerRoute{Dst: c, IfIndex: idx, Via: via, Src: d.nodeAddr(c.Addr().Is4())}
	}
}

// led adds to a route that the peer answers by itself what is led to it.
func (d *Dataplane) led(peer Peer, r dpmaps.Route) dpmaps.Route {
	far := underlayOf(peer, d.underlay.Is4())
	if d.cfg.DSR() && peer.DSR && d.tunnel != 0 && far.IsValid() {
		r.DSR, r.Far = d.tunnel, far
	}
	return r
}

func (d *Dataplane) addTunnel(p *paths, peer Peer, dst netip.Prefix, kernel bool) {
	far := underlayOf(peer, d.underlay.Is4())
	if !far.IsValid() || d.tunnel == 0 {
		p.errs = append(p.errs, fmt.Errorf("peer %s: no way to it through the overlay: no address of the overlay's family", peer.Name))
		return
	}
	p.bpf[dst] = d.led(peer, dpmaps.Route{
		Kind:    bpf.DatapathRouteKindROUTE_TUNNEL,
		IfIndex: d.tunnel,
		Next:    far,
		MAC:     attach.TunnelMAC(far),
		SrcMAC:  attach.TunnelMAC(d.underlay),
		Under:   d.underOf(far),
	})
	d.under[far] = p.bpf[dst].Under
	if kernel {
		p.kernel[dst] = attach.PeerRoute{
			Dst: dst, IfIndex: d.tunnel, Tunnel: far, VNI: d.cfg.Tunnel.VNI, Src: d.nodeAddr(dst.Addr().Is4()),
		}
	}
}

// modeOf decides how a peer is reached: what it says, or natively when it is on
// a link of ours.
func (d *Dataplane) modeOf(p Peer) string {
	switch p.Mode {
	case modeNative, modeVXLAN:
		return p.Mode
	}
	if idx, _ := d.nextHop(p, true); idx != 0 {
		return modeNative
	}
	return modeVXLAN
}

// nextHop is the address of a peer on one of our links, of the wanted family if
// there is one, and the link; 0 when it is on none.
func (d *Dataplane) nextHop(p Peer, v4 bool) (int, netip.Addr) {
	bestIdx, best := 0, netip.Addr{}
	for _, i := range d.host.Interfaces {
		if _, up := d.uplinks[i.Index]; !up {
			continue
		}
		for _, a := range p.Addrs {
			on := func(l netip.Prefix) bool { return l.Contains(a) && !l.IsSingleIP() }
			if slices.ContainsFunc(i.Links, on) && (bestIdx == 0 || a.Is4() == v4 && best.Is4() != v4) {
				bestIdx, best = i.Index, a
			}
		}
	}
	return bestIdx, best
}

// nodeAddr is the node's primary address of a family; invalid when it has none.
func (d *Dataplane) nodeAddr(v4 bool) netip.Addr {
	for _, a := range d.node.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

func underlayOf(p Peer, v4 bool) netip.Addr {
	for _, a := range p.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

// syncTunnel makes the overlay's device while a peer needs it, or may lead
// flows here through it.
func (d *Dataplane) syncTunnel() error {
	// Before the node's addresses are known nobody leads anything here.
	need := d.cfg.DSR() && len(d.node.Addrs) > 0 || slices.ContainsFunc(slices.Collect(maps.Values(d.peers)), func(p Peer) bool { return d.modeOf(p) == modeVXLAN })
	if !need {
		d.tunnel = 0
		if !d.peersKnown {
			return d.adoptTunnel()
		}
		return attach.DeleteTunnel(d.cfg.Tunnel.Device)
	}
	if len(d.node.Addrs) == 0 {
		return fmt.Errorf("overlay: the node has no address yet")
	}
	under := d.node.Addrs[0]
	mtu := 0
	for _, i := range d.host.Interfaces {
		if slices.Contains(i.Addrs, under) {
			mtu = i.MTU
		}
	}
	if mtu == 0 {
		return fmt.Errorf("overlay: no interface has the node's address %s", under)
	}
	idx, err := attach.EnsureTunnel(attach.TunnelDevice{
		Name: d.cfg.Tunnel.Device, Port: d.cfg.Tunnel.Port, Node: under, MTU: mtu,
	})
	if err != nil {
		return err
	}
	if d.tunnel != idx {
		if err := d.kernel.Tunnel(idx); err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	d.tunnel, d.underlay, d.underMTU = idx, under, mtu
	return d.tellUnderlay()
}

// tellUnderlay tells the programs our end of the overlay.
func (d *Dataplane) tellUnderlay() error {
	if err := d.kernel.Underlay.Set(dpmaps.AddrOf(d.underlay)); err != nil {
		return fmt.Errorf("set end of the overlay: %w", err)
	}
	return nil
}

// adoptTunnel gives the device of an earlier daemon the new program.
func (d *Dataplane) adoptTunnel() error {
	for _, i := range d.host.Interfaces {
		if i.Name == d.cfg.Tunnel.Device {
			return d.kernel.Tunnel(i.Index)
		}
	}
	return nil
}
