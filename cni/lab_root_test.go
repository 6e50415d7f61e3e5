// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
	"github.com/nodeagent/nodeagent/dataplane"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// Addresses of the lab's node.
var (
	nodeAddr4 = netip.MustParseAddr("192.0.2.10")
	nodeAddr6 = netip.MustParseAddr("2001:db8:1::10")
)

// newHost makes the namespace of a node: lo and an uplink with addresses.
func newHost(tb testing.TB) string {
	tb.Helper()
	host := netnstest.New(tb)
	netnstest.Do(tb, host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "up0", 1480
		up := netlink.NewVeth(attrs)
		up.PeerName = "wire0"
		errs := []error{netlink.LinkAdd(up)}
		peer, err := netlink.LinkByName("wire0") //nolint:forbidigo // by name: no dump
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}
		errs = append(errs, netlink.LinkSetUp(peer), netlink.LinkSetUp(up), netlink.LinkSetUp(lo))
		for _, a := range []string{nodeAddr4.String() + "/24", nodeAddr6.String() + "/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = 2 // IFA_F_NODAD
			errs = append(errs, netlink.AddrAdd(up, addr))
		}
		for _, gw := range []string{"192.0.2.1", "2001:db8:1::1"} {
			errs = append(errs, netlink.RouteAdd(&netlink.Route{LinkIndex: up.Index, Gw: net.ParseIP(gw)}))
		}
		return errors.Join(errs...)
	})
	return host
}

// fakeDataplane remembers endpoints, calls probe on each verb and fails on demand.
type fakeDataplane struct {
	mu    sync.Mutex // guards all
	eps   map[string]dataplane.Endpoint
	next  map[string]error
	probe func(verb, id string)
}

func newFakeDataplane() *fakeDataplane {
	return &fakeDataplane{eps: map[string]dataplane.Endpoint{}, next: map[string]error{}, probe: func(string, string) {}}
}

// FailNext makes the next call of a verb fail.
func (f *fakeDataplane) FailNext(verb string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next[verb] = err
}

func (f *fakeDataplane) enter(verb, id string) error {
	f.probe(verb, id)
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.next[verb]
	delete(f.next, verb)
	return err
}

func (f *fakeDataplane) UpdateEndpoint(_ context.Context, ep dataplane.Endpoint) error {
	if err := f.enter("update", ep.ID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.eps[ep.ID] = ep
	return nil
}

func (f *fakeDataplane) DeleteEndpoint(_ context.Context, id string) error {
	if err := f.enter("delete", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.eps, id)
	return nil
}

func (f *fakeDataplane) PruneEndpoints(_ context.Context, keep []string) error {
	if err := f.enter("prune", ""); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := map[string]dataplane.Endpoint{}
	for _, id := range keep {
		if ep, ok := f.eps[id]; ok {
			kept[id] = ep
		}
	}
	f.eps = kept
	return nil
}

func (f *fakeDataplane) ids() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.eps {
		out = append(out, id)
	}
	return out
}

// lab is one node under test.
type lab struct {
	tb   testing.TB
	host string
	db   *bbolt.DB
	dp   *fakeDataplane
	cfg  Config
	net  *Network
	// clock is added to the time of day.
	clock time.Duration
}

func newLab(tb testing.TB, change func(*Config)) *lab {
	tb.Helper()
	netnstest.RequireRoot(tb)
	cfg := Default()
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")}
	cfg.QueueDir = tb.TempDir()
	if change != nil {
		change(&cfg)
	}
	db, err := bbolt.Open(filepath.Join(tb.TempDir(), "state.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	l := &lab{tb: tb, host: newHost(tb), db: db, dp: newFakeDataplane(), cfg: cfg}
	l.net = l.start()
	if _, err := l.net.Prepare(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.net.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return l
}

func (l *lab) start() *Network {
	l.tb.Helper()
	n, err := New(l.cfg, Deps{
		DB: l.db, Dataplane: l.dp, HostNS: l.host, Tunnel: "tun0", Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Now().Round(0).Add(l.clock) },
	})
	if err != nil {
		l.tb.Fatal(err)
	}
	if err := n.Start(l.tb.Context()); err != nil {
		l.tb.Fatal(err)
	}
	return n
}

// restart ends the daemon, as kill would as far as anyone can see, and begins another.
func (l *lab) restart() {
	l.tb.Helper()
	if err := l.net.Stop(context.Background()); err != nil {
		l.tb.Fatal(err)
	}
	l.net = l.start()
}

// world is everything that an attachment consists of, outside its namespace.
func (l *lab) world() string {
	l.tb.Helper()
	if err := l.net.wire.Reap(context.Background()); err != nil {
		l.tb.Fatal(err)
	}
	links, err := l.net.wire.List(context.Background(), l.cfg.LinkPrefix)
	if err != nil {
		l.tb.Fatal(err)
	}
	stored := 0
	err = l.db.View(func(tx *bbolt.Tx) error {
		stored = attachments(tx).Stats().KeyN
		return nil
	})
	if err != nil {
		l.tb.Fatal(err)
	}
	return fmt.Sprintf("links %v, leases %v, attachments %v, stored %d, endpoints %v",
		links, l.net.Leases(), l.net.List(), stored, l.dp.ids())
}

func (l *lab) attach(id string) (*Result, string) {
	l.tb.Helper()
	pod := netnstest.New(l.tb)
	res, err := l.net.Attach(l.tb.Context(), Request{Key: Key{id, "eth0"}, NetNS: pod})
	if err != nil {
		l.tb.Fatal(err)
	}
	return res, pod
}

// talk sends one line over TCP from one namespace to an address in another,
// and returns the address that the listener saw.
func talk(tb testing.TB, from, to string, addr netip.Addr) netip.Addr {
	tb.Helper()
	var ln net.Listener
	netnstest.Do(tb, to, func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	defer ln.Close() //nolint:errcheck // a test's listener
	seen := make(chan netip.Addr, 1)
	go func() {
		defer close(seen)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close() //nolint:errcheck // a test's connection
		if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			seen <- ap.Addr().Unmap()
		}
	}()
	netnstest.Do(tb, from, func() error {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // a test's connection
		_, err = io.ReadAll(c)
		return err
	})
	return <-seen
}
