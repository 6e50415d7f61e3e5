// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane"
)

// nodeTopic tells the sinks for the own Node what it says. A Node that is
// deleted or that loses a field takes nothing away: a node that runs pods does
// not stop to do so because its object was touched.
type nodeTopic struct {
	name  string
	base  dataplane.Node
	nodes func() cache.Indexer

	node  NodeSink
	cidrs PodCIDRSink
	// dsr is what the Node shall say of direct return; patch changes it, nil
	// without an API server.
	dsr   bool
	patch func(ctx context.Context, patch []byte) error

	// What the sinks took last; only the topic's goroutine touches it.
	sentNode  *dataplane.Node
	sentCIDRs []netip.Prefix
}

func (t *nodeTopic) replace(ctx context.Context) ([]string, bool, error) {
	err := t.update(ctx, nil)
	return []string{t.name}, err == nil, err
}

func (t *nodeTopic) update(ctx context.Context, _ []string) error {
	obj, ok, err := t.nodes().GetByKey(t.name)
	if err != nil || !ok {
		return err
	}
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("node %s: the store holds a %T", t.name, obj)
	}
	addrs, cidrs, err := nodeAddresses(n)
	if err != nil {
		return err
	}
	return errors.Join(t.tellCIDRs(ctx, cidrs), t.tellNode(ctx, n.Labels[LabelZone], addrs, cidrs), t.advertise(ctx, n))
}

// advertise makes the Node say whether this node takes what others lead to it.
func (t *nodeTopic) advertise(ctx context.Context, n *corev1.Node) error {
	said := n.Annotations[AnnotationDSR]
	if t.patch == nil || (said == "true") == t.dsr && (t.dsr || said == "") {
		return nil
	}
	value := "null"
	if t.dsr {
		value = `"true"`
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}}}`, AnnotationDSR, value)
	if err := t.patch(ctx, []byte(patch)); err != nil {
		return fmt.Errorf("annotate node %s with %s: %w", n.Name, AnnotationDSR, err)
	}
	return nil
}

func (t *nodeTopic) tellCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	if t.cidrs == nil || len(cidrs) == 0 || slices.Equal(cidrs, t.sentCIDRs) {
		return nil
	}
	if err := t.cidrs.SetPodCIDRs(ctx, cidrs); err != nil {
		return fmt.Errorf("set pod CIDRs %v: %w", cidrs, err)
	}
	t.sentCIDRs = cidrs
	return nil
}

func (t *nodeTopic) tellNode(ctx context.Context, zone string, addrs []netip.Addr, cidrs []netip.Prefix) error {
	if t.node == nil {
		return nil
	}
	n := t.base
	n.Name = t.name
	if zone != "" {
		n.Zone = zone
	}
	if len(n.Addrs) == 0 {
		n.Addrs = addrs
	}
	if len(n.PodCIDRs) == 0 {
		n.PodCIDRs = cidrs
	}
	if t.sentNode != nil { // nothing is taken away
		if len(n.Addrs) == 0 {
			n.Addrs = t.sentNode.Addrs
		}
		if len(n.PodCIDRs) == 0 {
			n.PodCIDRs = t.sentNode.PodCIDRs
		}
		if reflect.DeepEqual(n, *t.sentNode) {
			return nil
		}
	}
	if err := t.node.SetNode(ctx, n); err != nil {
		return fmt.Errorf("set node %s: %w", n.Name, err)
	}
	t.sentNode = &n
	return nil
}

// nodeAddresses reads a Node's internal addresses, in its order, and ranges.
func nodeAddresses(n *corev1.Node) ([]netip.Addr, []netip.Prefix, error) {
	var addrs []netip.Addr
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if err != nil {
			return nil, nil, fmt.Errorf("node %s: internal address: %w", n.Name, err)
		}
		addrs = append(addrs, addr.Unmap())
	}
	ranges := n.Spec.PodCIDRs
	if len(ranges) == 0 && n.Spec.PodCIDR != "" {
		ranges = []string{n.Spec.PodCIDR}
	}
	var cidrs []netip.Prefix
	for _, r := range ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, nil, fmt.Errorf("node %s: pod CIDR: %w", n.Name, err)
		}
		cidrs = append(cidrs, p.Masked())
	}
	return addrs, cidrs, nil
}
