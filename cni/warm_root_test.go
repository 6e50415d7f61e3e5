// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

// warmed returns a namespace with a slot under the key "warm/eth0".
func (l *lab) warmed() string {
	l.tb.Helper()
	pod := netnstest.New(l.tb)
	for range 2 {
		if err := l.net.Warm(l.tb.Context(), Key{"warm", "eth0"}, pod); err != nil {
			l.tb.Fatal(err)
		}
	}
	return pod
}

func TestRootWarmSlotIsClaimed(t *testing.T) {
	l := newLab(t, nil)
	pod := l.warmed()
	if ids := l.dp.ids(); len(ids) != 0 {
		t.Errorf("endpoints %v before there is a pod", ids)
	}
	l.restart()
	if slots := l.net.WarmSlots(); len(slots) != 1 {
		t.Fatalf("slots after the restart: %v", slots)
	}
	slot, _ := l.net.records.get(Key{"warm", "eth0"})
	res, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod})
	if err != nil {
		t.Fatal(err)
	}
	if res.HostIfIndex != slot.Result.HostIfIndex || res.Addrs[0] != slot.Result.Addrs[0] {
		t.Errorf("%+v is not the slot %+v", res, slot.Result)
	}
	if err := l.net.Check(t.Context(), Request{Key: res.Key, NetNS: pod}); err != nil {
		t.Errorf("Check = %v", err)
	}
	if got := talk(t, l.host, pod, res.Addrs[0].Addr()); got != nodeAddr4 {
		t.Errorf("the pod saw %s, want %s", got, nodeAddr4)
	}
	again, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod})
	if err != nil || again.HostIfIndex != res.HostIfIndex {
		t.Errorf("a repeat = %+v, %v", again, err)
	}
	if err := l.net.Detach(t.Context(), Key{"warm", "eth0"}); err != nil {
		t.Error(err)
	}
	if n := len(l.net.List()); n != 1 {
		t.Errorf("%d attachments after the slot's key was detached, want the pod's", n)
	}
	if err := l.net.Detach(t.Context(), Key{"pod", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if w := l.world(); w != "links [], leases [], attachments [], stored 0, endpoints []" {
		t.Errorf("left: %s", w)
	}
}

// TestRootWarmSlotThatDoesNotSuit is replaced by what the pod asks for.
func TestRootWarmSlotThatDoesNotSuit(t *testing.T) {
	l := newLab(t, nil)
	pod := l.warmed()
	want := netip.MustParseAddr("10.77.0.200")
	res, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod, Addrs: []netip.Addr{want}})
	if err != nil || res.Addrs[0].Addr() != want {
		t.Fatalf("Attach = %+v, %v, want %s", res, err, want)
	}
	if n := len(l.net.List()); n != 1 {
		t.Errorf("%d attachments, want 1", n)
	}
	if err := l.net.Check(t.Context(), Request{Key: res.Key, NetNS: pod}); err != nil {
		t.Errorf("Check = %v", err)
	}
}

// TestRootWarmSlotWithoutItsLink: what a slot was made for may be gone, and its
// inode another namespace's.
func TestRootWarmSlotWithoutItsLink(t *testing.T) {
	l := newLab(t, nil)
	pod := l.warmed()
	slot, _ := l.net.records.get(Key{"warm", "eth0"})
	if err := l.net.wire.Remove(t.Context(), slot.Result.HostIfName); err != nil {
		t.Fatal(err)
	}
	res, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod})
	if err != nil || res.Addrs[0] == slot.Result.Addrs[0] {
		t.Fatalf("Attach = %+v, %v, want an attachment of its own", res, err)
	}
	if slots := l.net.WarmSlots(); len(slots) != 0 {
		t.Errorf("slots left: %v", slots)
	}
}

func TestRootWarmSlotThrownAway(t *testing.T) {
	l := newLab(t, nil)
	before := l.world()
	pod := l.warmed()
	if err := l.net.Detach(t.Context(), Key{"warm", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
	if _, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod}); err != nil {
		t.Errorf("Attach without the slot = %v", err)
	}
}

// TestRootWarmAndClaimAtEachStep: whatever ends a step, the next daemon leaves
// nothing of it.
func TestRootWarmAndClaimAtEachStep(t *testing.T) {
	for _, cause := range []error{errInjected, errCrash, context.Canceled} {
		for _, step := range []string{"reserve", "link", "prepare", "commit"} {
			t.Run("warm/"+step+"/"+cause.Error(), func(t *testing.T) {
				l := newLab(t, nil)
				before := l.world()
				l.net.failpoint = at(step, func(context.Context) error { return cause })
				if err := l.net.Warm(t.Context(), Key{"warm", "eth0"}, netnstest.New(t)); !errors.Is(err, cause) {
					t.Fatalf("Warm = %v, want %v", err, cause)
				}
				l.recovered(cause, before)
			})
		}
		for _, step := range []string{"claim", "adopt", "endpoint", "enable", "commit"} {
			t.Run("claim/"+step+"/"+cause.Error(), func(t *testing.T) {
				l := newLab(t, nil)
				before := l.world()
				pod := l.warmed()
				if step == "claim" {
					before = l.world() // nothing is begun: the slot stays
				}
				l.net.failpoint = at(step, func(context.Context) error { return cause })
				if _, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod}); !errors.Is(err, cause) {
					t.Fatalf("Attach = %v, want %v", err, cause)
				}
				l.recovered(cause, before)
			})
		}
	}
}

// recovered restarts the daemon after a crash and compares the world.
func (l *lab) recovered(cause error, before string) {
	l.tb.Helper()
	l.net.failpoint = noFailpoint
	if errors.Is(cause, errCrash) {
		l.restart()
	}
	if after := l.world(); after != before {
		l.tb.Errorf("before %s\n after %s", before, after)
	}
}

func TestRootWarmSlotWhoseNamespaceGoes(t *testing.T) {
	l := newLab(t, nil)
	before := l.world()
	pod := l.warmed()
	slot, _ := l.net.records.get(Key{"warm", "eth0"})
	if err := errors.Join(netns.Remove(pod), l.net.wire.Remove(t.Context(), slot.Result.HostIfName)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.net.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
}
