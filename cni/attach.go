// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/link"
	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/dataplane"
)

// Attach gives a pod its interface. A repeat for an attachment that is in place
// returns the same result; one for another namespace, or for one that is
// damaged, replaces it. The pod is in the data path's maps before its link is
// up. After an error nothing is left but, if undoing failed too, a record that
// reconciliation and Detach finish.
func (n *Network) Attach(ctx context.Context, req Request) (_ *Result, retErr error) {
	ctx, done := n.verb(ctx, "attach")
	defer done(&retErr)
	req, pool, err := n.prepareRequest(req)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	if err := n.Status(ctx); err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	leave, err := n.enter()
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	defer leave()
	ns, err := n.openPod(req.NetNS)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	unlock, err := n.locks.lock(ctx, req.Key)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	defer unlock()
	res, err := n.attachLocked(ctx, req, pool, ns)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	return res, nil
}

func (n *Network) attachLocked(ctx context.Context, req Request, pool string, ns *netns.NS) (*Result, error) {
	if old, ok := n.records.get(req.Key); ok {
		if old.State == stateReady && old.NetNSInode == ns.Inode() && n.inspect(ctx, old, ns) == nil {
			return &old.Result, nil
		}
		if err := n.detachLocked(ctx, old); err != nil {
			return nil, fmt.Errorf("replace what was there: %w", err)
		}
	}
	if err := n.queue.Forget(req.ContainerID, req.IfName); err != nil {
		return nil, fmt.Errorf("forget an older delete: %w", err)
	}
	res, err := n.claim(ctx, req, pool, ns)
	if err != nil {
		return nil, err
	}
	if res == nil {
		rec := n.newRecord(req, ns)
		if err := n.runSteps(ctx, n.attachSteps(&rec, pool, ns)); err != nil {
			return nil, n.noteUndone(rec, err)
		}
		res = &rec.Result
	}
	n.log.InfoContext(ctx, "pod attached", "attachment", req.Key, "pod_namespace", req.Pod.Namespace,
		"pod_name", req.Pod.Name, "addrs", res.Addrs, "host_interface", res.HostIfName)
	return res, nil
}

// openPod opens a pod's namespace; the host's own is none.
func (n *Network) openPod(path string) (*netns.NS, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	if ns.Inode() == n.host.Inode() {
		return nil, errors.Join(fmt.Errorf("%w of a pod: %s is the node's own", ErrNetNS, path), ns.Close())
	}
	return ns, nil
}

func (n *Network) newRecord(req Request, ns *netns.NS) record {
	mac, hostMAC := link.MACs(req.String())
	if len(req.MAC) > 0 {
		mac = req.MAC
	}
	m := n.currentMTU()
	return record{
		RouteMTU: m.route,
		State:    statePending, Request: req, NetNSInode: ns.Inode(), Since: n.deps.Now(),
		Result: Result{
			Key: req.Key, NetNS: req.NetNS, MAC: mac, HostMAC: hostMAC,
			HostIfName: link.HostName(n.cfg.LinkPrefix, req.String()), MTU: m.device,
		},
	}
}

// attachSteps are the steps that make rec true.
func (n *Network) attachSteps(rec *record, pool string, ns *netns.NS) []step {
	return []step{
		{
			name: "reserve", anchor: true,
			do:   func(context.Context) error { return n.reserve(rec, pool) },
			undo: func(context.Context) error { return n.release(rec.Request.Key) },
		},
		{
			name: "link",
			do: func(ctx context.Context) (err error) {
				rec.Result.HostIfIndex, err = n.wire.Create(ctx, ns, n.linkSpec(*rec))
				return err
			},
			undo: func(ctx context.Context) error { return n.wire.Remove(ctx, rec.Result.HostIfName) },
		},
		{
			name: "endpoint",
			do:   func(ctx context.Context) error { return n.dp.UpdateEndpoint(ctx, endpoint(*rec)) },
			undo: func(ctx context.Context) error { return n.dp.DeleteEndpoint(ctx, rec.Request.String()) },
		},
		{
			name: "enable",
			do:   func(ctx context.Context) error { return n.wire.Enable(ctx, rec.Result.HostIfIndex, n.linkSpec(*rec)) },
		},
		{
			name: "commit",
			do: func(context.Context) error {
				rec.State = stateReady
				return n.records.put(*rec)
			},
		},
	}
}

// reserve records the intent and the leases in one transaction.
func (n *Network) reserve(rec *record, pool string) error {
	want := ipam.Request{Owner: rec.Request.String(), Pool: pool, Want: rec.Request.Addrs, Within: rec.Request.Ranges}
	_, err := n.book.Acquire(want, func(tx *bbolt.Tx, leases []ipam.Lease) error {
		rec.Result.Addrs, rec.Result.Gateways = nil, nil
		for _, l := range leases {
			rec.Result.Addrs = append(rec.Result.Addrs, netip.PrefixFrom(l.Addr, l.Addr.BitLen()))
			rec.Result.Gateways = append(rec.Result.Gateways, link.Gateway(l.Addr))
		}
		return putRecord(tx, *rec)
	})
	if err != nil {
		return ipamError(err)
	}
	n.records.remember(*rec)
	return nil
}

// ipamError adds the sentinel of this package that an allocator's error means.
func ipamError(err error) error {
	switch {
	case errors.Is(err, ipam.ErrInvalid), errors.Is(err, ipam.ErrTaken):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.Is(err, ipam.ErrNoRange):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return err
}

// release gives the leases back and deletes the record in one transaction.
func (n *Network) release(k Key) error {
	err := n.book.Release(k.String(), func(tx *bbolt.Tx, _ []ipam.Lease) error { return deleteRecord(tx, k) })
	if err != nil {
		return err
	}
	n.records.forget(k)
	return nil
}

// noteUndone looks at what a failed attach left. If its undoing failed too, the
// record stays, as one whose removal is to be finished.
func (n *Network) noteUndone(rec record, err error) error {
	if errors.Is(err, errCrash) {
		return err
	}
	left, ok := n.records.get(rec.Request.Key)
	if !ok {
		return err
	}
	left.State = stateDeleting
	return errors.Join(err, n.records.put(left))
}

func (n *Network) linkSpec(rec record) link.Spec {
	s := link.Spec{
		HostName: rec.Result.HostIfName, HostMAC: rec.Result.HostMAC, Alias: alias(rec.Request),
		IfName: rec.Result.IfName, MAC: rec.Result.MAC, MTU: rec.Result.MTU, RouteMTU: rec.RouteMTU,
	}
	for _, p := range rec.Result.Addrs {
		s.Addrs = append(s.Addrs, p.Addr())
	}
	return s
}

// maxAlias is IFALIASZ of linux/if.h without the final zero.
const maxAlias = 255

func alias(req Request) string {
	s := req.String()
	if req.Pod.Name != "" {
		s = req.Pod.Namespace + "/" + req.Pod.Name + " " + s
	}
	return s[:min(len(s), maxAlias)]
}

// bitsPerByte turns the bits of CNI into the bytes of the data path.
const bitsPerByte = 8

// protocolNumber returns the IP protocol number of a host port; 0: unknown.
func protocolNumber(name string) uint8 {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP
	case "udp":
		return unix.IPPROTO_UDP
	case "sctp":
		return unix.IPPROTO_SCTP
	}
	return 0
}

// endpoint returns the attachment as the data path sees it.
func endpoint(rec record) dataplane.Endpoint {
	ep := dataplane.Endpoint{
		ID: rec.Request.String(), Namespace: rec.Request.Pod.Namespace, Name: rec.Request.Pod.Name,
		IfIndex: rec.Result.HostIfIndex, IfName: rec.Result.HostIfName,
		MAC: rec.Result.MAC, HostMAC: rec.Result.HostMAC,
		IngressRate: rec.Request.Bandwidth.IngressRate / bitsPerByte,
		EgressRate:  rec.Request.Bandwidth.EgressRate / bitsPerByte,
	}
	for _, p := range rec.Result.Addrs {
		ep.Addrs = append(ep.Addrs, p.Addr())
	}
	for _, m := range rec.Request.PortMappings {
		ep.HostPorts = append(ep.HostPorts, dataplane.HostPort{
			Protocol: protocolNumber(m.Protocol), HostPort: m.HostPort, ContainerPort: m.ContainerPort, HostIP: m.HostIP,
		})
	}
	return ep
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.IfName, b.IfName))
}

func sortKeys(keys []Key) []Key {
	slices.SortFunc(keys, compareKeys)
	return keys
}
