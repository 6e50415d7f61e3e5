// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/nodeagent/nodeagent/dataplane/observe"
	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// labSeen is what two watchers of an agent saw: one of everything, one of what
// is refused.
type labSeen struct{ All, Refused []observe.Event }

// labLooks are the watchers of an agent, in its process.
type labLooks struct {
	mu   sync.Mutex
	seen labSeen
	errs []error
	stop context.CancelFunc
	wg   sync.WaitGroup
	// grown are the maps that were made larger; only the agent's calls touch it.
	grown []string
}

func (l *labLooks) grew(name string, from, to uint32) {
	if to > from {
		l.grown = append(l.grown, name)
	}
}

// start returns when both look.
func (l *labLooks) start(d *Dataplane) {
	ctx, cancel := context.WithCancel(context.Background())
	l.stop, l.seen = cancel, labSeen{}
	look := func(newFlows bool, into *[]observe.Event) {
		l.wg.Go(func() {
			err := d.Events(ctx, newFlows, func(e observe.Event, _ int) {
				l.mu.Lock()
				defer l.mu.Unlock()
				*into = append(*into, e)
			})
			l.mu.Lock()
			defer l.mu.Unlock()
			l.errs = append(l.errs, err)
		})
	}
	look(true, &l.seen.All)
	look(false, &l.seen.Refused)
	for looking := 0; looking < 2; <-time.After(time.Millisecond) {
		d.watchers.mu.Lock()
		looking = len(d.watchers.all)
		d.watchers.mu.Unlock()
	}
}

// soFar are the events until now; the watchers go on.
func (l *labLooks) soFar() labSeen {
	l.mu.Lock()
	defer l.mu.Unlock()
	return labSeen{slices.Clone(l.seen.All), slices.Clone(l.seen.Refused)}
}

func (l *labLooks) end() error {
	l.stop()
	l.wg.Wait()
	return errors.Join(l.errs...)
}

// TestRootEvents: who looks sees what is refused, and new flows if it asks for
// them, also while another one looks, and again after both have gone.
func TestRootEvents(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	server, client := h.addPod(t, "server"), h.addPod(t, "client")
	server.serve(t, "server", 8080, server.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("nobody", vips(1), 8080)})
	objects := policy.Objects{Pods: []*corev1.Pod{labPod(server, "server"), labPod(client, "client")}}
	server.ep.Namespace, client.ep.Namespace = "default", "default"
	h.agent.must(t, "UpdateEndpoint", server.ep)
	h.agent.must(t, "UpdateEndpoint", client.ep)
	open, closed := netip.AddrPortFrom(server.addrs[0], 8080), netip.AddrPortFrom(server.addrs[1], 8080)
	objects.Policies = []*networkingv1.NetworkPolicy{
		onlyFrom("server", networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/16"}}),
	}
	h.agent.must(t, "ReplacePolicyObjects", objects)
	for range 2 {
		h.agent.must(t, "Watch", nil)
		client.reaches(t, "udp", open, true)
		client.reaches(t, "udp", closed, false)
		client.reaches(t, "udp", netip.AddrPortFrom(vips(1)[0], 80), false)
		has := func(events []observe.Event, to netip.AddrPort, verdict, reason string) bool {
			return slices.ContainsFunc(events, func(e observe.Event) bool {
				return e.Flow.Dst == to && e.Flow.Src.Addr() == client.addrs[len(to.Addr().AsSlice())/16] &&
					e.Reason.Verdict() == verdict && e.Reason.Name == reason && e.Hook == "from_pod"
			})
		}
		var seen labSeen
		eventually(t, "events", func() error {
			if err := h.agent.get("Watched", nil, &seen); err != nil {
				return err
			}
			for _, events := range [][]observe.Event{seen.All, seen.Refused} {
				if !has(events, closed, "dropped", "policy_ingress") {
					return fmt.Errorf("the denied packet is not among %+v", events)
				}
				if !has(events, netip.AddrPortFrom(vips(1)[0], 80), "rejected", "rejected") {
					return fmt.Errorf("the rejected packet is not among %+v", events)
				}
			}
			if !has(seen.All, open, "forwarded", "local") {
				return fmt.Errorf("the new flow is not among %+v", seen.All)
			}
			return nil
		})
		if has(seen.Refused, open, "forwarded", "local") {
			t.Error("a new flow was told to who did not ask")
		}
		h.agent.must(t, "Unwatch", nil)
	}
}
