// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// TestRootWatchConcerns brings a pod's link up and away, which nobody is told of,
// and then changes what the data path has to know, one thing after the other.
func TestRootWatchConcerns(t *testing.T) {
	n := newNetNS(t, "watch")
	n.run(t, "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up; ip addr add 10.1.0.1/24 dev up0")
	d := &Dataplane{hostChanged: make(chan struct{}, 1), under: map[netip.Addr]maps.Under{netip.MustParseAddr("10.9.0.9"): {}}}
	d.cfg.Tunnel.Device = "nodeagent0"
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 100)
	var done <-chan struct{}
	if err := n.do(func() (err error) {
		host, err := attach.ReadHost()
		if err != nil {
			return err
		}
		d.host = d.relevant(host)
		d.watchFor()
		done, err = attach.Watch(ctx, changed, &d.concerns)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		<-done
	}()
	n.run(t, `ip link add pod0 type veth peer name pod1; ip link set pod0 up; ip link set pod1 up
		ip route add 10.2.0.7/32 dev pod0; ip route add fd00::7/128 dev pod0; ip link del pod0`)
	if told(changed, 200*time.Millisecond) {
		t.Fatal("told of a pod's changes")
	}
	for _, script := range []string{
		"ip link set up0 mtu 1400", "ip addr add fd00:1::1/64 dev up1 nodad", "ip route add default via 10.1.0.2",
		"ip route add 10.9.0.9/32 via 10.1.0.3", "ip link add nodeagent0 type veth peer name nodeagent1", "ip addr del 10.1.0.1/24 dev up0",
	} {
		n.run(t, script)
		if !told(changed, 10*time.Second) {
			t.Fatalf("not told of: %s", script)
		}
		for told(changed, 50*time.Millisecond) {
		}
	}
}

// told waits for a change.
func told(changed <-chan struct{}, wait time.Duration) bool {
	select {
	case <-changed:
		return true
	case <-time.After(wait):
		return false
	}
}

// TestWatchForLooksAgain: what is new may have changed before it was watched.
func TestWatchForLooksAgain(t *testing.T) {
	d := &Dataplane{hostChanged: make(chan struct{}, 1)}
	for _, step := range []struct {
		index int
		again bool
	}{{1, false}, {1, false}, {2, true}, {2, false}} {
		d.host = attach.Host{Interfaces: []attach.Interface{{Index: step.index}}}
		d.watchFor()
		if again := len(d.hostChanged) == 1; again != step.again {
			t.Errorf("interface %d: looks again: %v", step.index, again)
		}
		for len(d.hostChanged) > 0 {
			<-d.hostChanged
		}
	}
}
