// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cni/ipam"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const quarantine = 30 * time.Second

var start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func allocator(t *testing.T, cidrs ...string) *ipam.Allocator {
	t.Helper()
	a := ipam.NewAllocator(quarantine)
	if err := a.SetPool(ipam.DefaultPool, prefixes(cidrs...)); err != nil {
		t.Fatal(err)
	}
	return a
}

// addrs joins the addresses of leases.
func addrs(leases []ipam.Lease) string {
	var out []string
	for _, l := range leases {
		out = append(out, l.Addr.String())
	}
	return strings.Join(out, " ")
}

// TestUsableAddresses: what a range has to give, in order.
func TestUsableAddresses(t *testing.T) {
	for _, tc := range []struct{ cidr, want string }{
		{"10.0.0.0/29", "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6"},
		{"10.0.0.8/30", "10.0.0.10"},
		{"10.0.0.8/31", "10.0.0.8 10.0.0.9"},
		{"10.0.0.8/32", "10.0.0.8"},
		{"255.255.255.248/29", "255.255.255.250 255.255.255.251 255.255.255.252 255.255.255.253 255.255.255.254"},
		{"fd00::8/126", "fd00::a fd00::b"},
		{"fd00::8/127", "fd00::8 fd00::9"},
		{"fd00::8/128", "fd00::8"},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", ""},
	} {
		t.Run(tc.cidr, func(t *testing.T) {
			a := ipam.NewAllocator(quarantine)
			err := a.SetPool(ipam.DefaultPool, prefixes(tc.cidr))
			if tc.want == "" {
				if !errors.Is(err, ipam.ErrInvalid) {
					t.Errorf("SetPool = %v, want ErrInvalid", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i := 0; ; i++ {
				leases, err := a.Allocate(start, ipam.Request{Owner: fmt.Sprint(i)})
				if errors.Is(err, ipam.ErrExhausted) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, addrs(leases))
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("got %s, want %s", s, tc.want)
			}
			u := a.Usage(start)[0]
			if u.Used != u.Total || u.Total != uint64(len(got)) {
				t.Errorf("usage %+v, want %d of %d", u, len(got), len(got))
			}
		})
	}
}

func TestRangesThatPodsCannotHave(t *testing.T) {
	for _, tc := range []struct {
		cidrs []string
		says  string
	}{
		{[]string{"10.0.0.1/24"}, "10.0.0.0/24"},
		{[]string{"224.0.0.0/24"}, "no range for pods"},
		{[]string{"127.0.0.0/8"}, "no range for pods"},
		{[]string{"169.254.0.0/16"}, "no range for pods"},
		{[]string{"fe80::/64"}, "no range for pods"},
		{[]string{"0.0.0.0/0"}, "no range for pods"},
		{[]string{"::ffff:10.0.0.0/120"}, "IPv4"},
		{[]string{"10.0.0.0/16", "10.0.1.0/24"}, "overlaps"},
		{[]string{"10.0.0.0/24", "10.0.0.0/24"}, "overlaps"},
	} {
		a := allocator(t, "10.9.0.0/24")
		err := a.SetPool(ipam.DefaultPool, prefixes(tc.cidrs...))
		if !errors.Is(err, ipam.ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%v: %v, want ErrInvalid with %q", tc.cidrs, err, tc.says)
		}
		if u := a.Usage(start); len(u) != 1 || u[0].Prefix.String() != "10.9.0.0/24" {
			t.Errorf("%v changed the pool to %+v", tc.cidrs, u)
		}
	}
	if err := ipam.NewAllocator(0).SetPool("x", []netip.Prefix{{}}); !errors.Is(err, ipam.ErrInvalid) {
		t.Errorf("no prefix: %v, want ErrInvalid", err)
	}
}

func TestBothFamiliesAndSeveralRanges(t *testing.T) {
	a := allocator(t, "10.0.0.0/30", "fd00::/64", "10.1.0.0/30")
	for i, want := range []string{"10.0.0.2 fd00::2", "10.1.0.2 fd00::3"} {
		got, err := a.Allocate(start, ipam.Request{Owner: fmt.Sprint(i)})
		if err != nil || addrs(got) != want {
			t.Errorf("%d: %s, %v, want %s", i, addrs(got), err, want)
		}
	}
	_, err := a.Allocate(start, ipam.Request{Owner: "more"})
	var e *ipam.ExhaustedError
	if !errors.As(err, &e) || e.Family != 4 || e.Used != 2 || e.Total != 2 {
		t.Errorf("err = %v, want IPv4 exhausted, 2 of 2", err)
	}
	if len(a.Leases()) != 4 {
		t.Errorf("a failed allocation left %v", a.Leases())
	}
}

func TestOldestFreedFirstAfterItsRest(t *testing.T) {
	a := allocator(t, "10.0.0.0/29")
	for _, o := range []string{"a", "b", "c", "d", "e"} {
		if _, err := a.Allocate(start, ipam.Request{Owner: o}); err != nil {
			t.Fatal(err)
		}
	}
	a.Release(start.Add(1*time.Second), "c")
	a.Release(start.Add(2*time.Second), "a")
	_, err := a.Allocate(start.Add(quarantine), ipam.Request{Owner: "early"})
	var e *ipam.ExhaustedError
	if !errors.As(err, &e) || e.Resting != 2 || !e.Until.Equal(start.Add(quarantine+time.Second)) {
		t.Errorf("err = %v, want 2 resting until %s", err, start.Add(quarantine+time.Second))
	}
	for i, want := range []string{"10.0.0.4", "10.0.0.2"} {
		got, err := a.Allocate(start.Add(quarantine+time.Minute), ipam.Request{Owner: fmt.Sprint("late", i)})
		if err != nil || addrs(got) != want {
			t.Errorf("%d: %s, %v, want %s", i, addrs(got), err, want)
		}
	}
}

func TestFreshAddressesComeFirst(t *testing.T) {
	a := allocator(t, "fd00::/64")
	at := start
	seen := map[string]bool{}
	for i := range 10000 {
		at = at.Add(quarantine)
		got, err := a.Allocate(at, ipam.Request{Owner: "churn"})
		if err != nil {
			t.Fatal(err)
		}
		if i < 4096 && seen[addrs(got)] {
			t.Fatalf("%s came back after %d", addrs(got), i)
		}
		seen[addrs(got)] = true
		a.Release(at, "churn")
	}
	if len(seen) > 4200 {
		t.Errorf("%d addresses were used: memory grows with churn", len(seen))
	}
}

func TestStaticAddresses(t *testing.T) {
	a := allocator(t, "10.0.0.0/28", "fd00::/64")
	want := func(owner string, list ...string) ([]ipam.Lease, error) {
		req := ipam.Request{Owner: owner}
		for _, s := range list {
			req.Want = append(req.Want, netip.MustParseAddr(s))
		}
		return a.Allocate(start, req)
	}
	if got, err := want("a", "10.0.0.3"); err != nil || addrs(got) != "10.0.0.3 fd00::2" {
		t.Errorf("a = %s, %v", addrs(got), err)
	}
	for _, tc := range []struct {
		list []string
		err  error
	}{
		{[]string{"10.0.0.3"}, ipam.ErrTaken},
		{[]string{"10.0.0.0"}, ipam.ErrInvalid},
		{[]string{"10.0.0.1"}, ipam.ErrInvalid},
		{[]string{"10.0.0.15"}, ipam.ErrInvalid},
		{[]string{"10.0.1.3"}, ipam.ErrInvalid},
		{[]string{"10.0.0.4", "10.0.0.5"}, ipam.ErrInvalid},
	} {
		if got, err := want("b", tc.list...); !errors.Is(err, tc.err) {
			t.Errorf("%v = %s, %v, want %v", tc.list, addrs(got), err, tc.err)
		}
	}
	// The cursor goes around what was taken out of order.
	for i, next := range []string{"10.0.0.2", "10.0.0.4"} {
		if got, err := want(fmt.Sprint(i)); err != nil || got[0].Addr.String() != next {
			t.Errorf("%d = %s, %v, want %s", i, addrs(got), err, next)
		}
	}
	if got, err := want("a", "10.0.0.3"); err != nil || addrs(got) != "10.0.0.3 fd00::2" {
		t.Errorf("a again = %s, %v", addrs(got), err)
	}
	if _, err := want("a", "10.0.0.9"); !errors.Is(err, ipam.ErrInvalid) {
		t.Errorf("a with another address = %v, want ErrInvalid", err)
	}
}

func TestStretches(t *testing.T) {
	a := allocator(t, "10.0.0.0/24", "fd00::/64")
	stretch := func(first, last string) []ipam.Stretch {
		return []ipam.Stretch{{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}}
	}
	for i, tc := range []struct {
		list []ipam.Stretch
		want string
		err  error
	}{
		{stretch("10.0.0.0", "10.0.0.2"), "10.0.0.2 fd00::2", nil},
		{stretch("10.0.0.0", "10.0.0.2"), "", ipam.ErrExhausted},
		{stretch("10.0.0.254", "10.0.9.9"), "10.0.0.254 fd00::3", nil},
		{stretch("10.1.0.0", "10.1.0.9"), "", ipam.ErrInvalid},
		{append(stretch("10.0.0.2", "10.0.0.2"), stretch("10.0.0.9", "10.0.0.9")...), "10.0.0.9 fd00::4", nil},
		{stretch("fd00::9", "fd00::9"), "10.0.0.3 fd00::9", nil},
	} {
		got, err := a.Allocate(start, ipam.Request{Owner: fmt.Sprint(i), Within: [][]ipam.Stretch{tc.list}})
		if !errors.Is(err, tc.err) || err == nil && addrs(got) != tc.want {
			t.Errorf("%d: %s, %v, want %s, %v", i, addrs(got), err, tc.want, tc.err)
		}
	}
	a.Release(start, "0")
	again := ipam.Request{Owner: "again", Within: [][]ipam.Stretch{stretch("10.0.0.2", "10.0.0.2")}}
	if _, err := a.Allocate(start, again); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("an address that rests: %v, want ErrExhausted", err)
	}
	if got, err := a.Allocate(start.Add(quarantine), again); err != nil {
		t.Errorf("after its rest: %s, %v", addrs(got), err)
	}
}

func TestRangesComeAndGo(t *testing.T) {
	a := allocator(t, "10.0.0.0/24")
	if _, err := a.Allocate(start, ipam.Request{Owner: "a"}); err != nil {
		t.Fatal(err)
	}
	set := func(cidrs ...string) {
		t.Helper()
		if err := a.SetPool(ipam.DefaultPool, prefixes(cidrs...)); err != nil {
			t.Fatal(err)
		}
	}
	set("10.1.0.0/24")
	if got := addrs(a.Leases()); got != "10.0.0.2" {
		t.Errorf("leases %s, want the old one to stay", got)
	}
	set("10.0.0.0/24", "10.1.0.0/24")
	if got, err := a.Allocate(start, ipam.Request{Owner: "b"}); err != nil || addrs(got) != "10.0.0.3" {
		t.Errorf("b = %s, %v, want 10.0.0.3", addrs(got), err)
	}
	set()
	if _, err := a.Allocate(start, ipam.Request{Owner: "c"}); !errors.Is(err, ipam.ErrNoRange) {
		t.Errorf("c = %v, want ErrNoRange", err)
	}
}

func TestUndoAndRename(t *testing.T) {
	a := allocator(t, "10.0.0.0/24")
	if _, err := a.Allocate(start, ipam.Request{Owner: "a"}); err != nil {
		t.Fatal(err)
	}
	a.Undo("a")
	if got, err := a.Allocate(start, ipam.Request{Owner: "b"}); err != nil || addrs(got) != "10.0.0.2" {
		t.Errorf("after undo = %s, %v, want 10.0.0.2 without rest", addrs(got), err)
	}
	if err := a.Rename("b", "c"); err != nil || addrs(a.Owned("c")) != "10.0.0.2" || a.Owned("b") != nil {
		t.Errorf("Rename = %v, c has %v, b has %v", err, a.Owned("c"), a.Owned("b"))
	}
	if err := a.Rename("b", "d"); !errors.Is(err, ipam.ErrInvalid) {
		t.Errorf("Rename of nobody = %v, want ErrInvalid", err)
	}
}

// FuzzAllocator does what the bytes say and looks at the promises after each:
// no address has two owners, each is in a range, what was released rests.
func FuzzAllocator(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 128, 129, 0, 1, 64, 65})
	f.Fuzz(func(t *testing.T, ops []byte) {
		a := allocator(t, "10.0.0.0/29", "10.0.1.0/30", "fd00::/126")
		now := start
		owner := map[netip.Addr]string{}
		rests := map[netip.Addr]time.Time{}
		for _, op := range ops {
			now = now.Add(time.Duration(op%7) * 3 * time.Second)
			who := fmt.Sprint(op % 16)
			if op >= 128 {
				for _, addr := range a.Release(now, who) {
					if owner[addr] != who {
						t.Fatalf("%s gave back %s of %s", who, addr, owner[addr])
					}
					delete(owner, addr)
					rests[addr] = now.Add(quarantine)
				}
				continue
			}
			had := len(a.Owned(who)) > 0
			got, err := a.Allocate(now, ipam.Request{Owner: who})
			if err != nil && !errors.Is(err, ipam.ErrExhausted) {
				t.Fatal(err)
			}
			for _, l := range got {
				if o, taken := owner[l.Addr]; taken && o != who {
					t.Fatalf("%s of %s given to %s", l.Addr, o, who)
				}
				if !had && now.Before(rests[l.Addr]) {
					t.Fatalf("%s given before its rest ended", l.Addr)
				}
				owner[l.Addr] = who
			}
		}
		if len(a.Leases()) != len(owner) {
			t.Fatalf("%d leases, want %d", len(a.Leases()), len(owner))
		}
	})
}
