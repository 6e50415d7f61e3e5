// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/netip"
	"strings"
	"testing"
)

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

// TestValidateReportsAllFaults: one line a fault, each beginning with its path.
func TestValidateReportsAllFaults(t *testing.T) {
	p := netip.MustParsePrefix
	c := Default()
	c.PodCIDRs = []netip.Prefix{p("10.0.0.0/16"), p("10.0.1.0/24"), p("10.2.0.1/24")}
	c.Pools = []Pool{
		{Name: "a", CIDRs: []netip.Prefix{p("10.0.2.0/24")}, Namespaces: []string{"x"}},
		{Name: "a", Namespaces: []string{"x"}},
		{Name: "default", CIDRs: []netip.Prefix{p("10.3.0.0/24")}},
	}
	c.MTU, c.RouteMTU, c.Quarantine, c.ReconcileInterval = 1300, 1400, -1, 0
	c.LinkPrefix, c.QueueDir = "much/too/long", "relative"
	c.Conflist.Enabled, c.Conflist.Path = true, "x"
	want := []string{
		"pools[1].name: ", "pools[1].cidrs: ", "pools[1].namespaces[0]: ", "pools[2].name: ",
		"podCIDRs[1]: ", "podCIDRs[2]: ", "pools[0].cidrs[0]: ",
		"routeMTU: ", "quarantine: ", "reconcileInterval: ", "linkPrefix: ", "queueDir: ", "conflist.path: ",
	}
	lines := strings.Split(c.Validate().Error(), "\n")
	if len(lines) != len(want) {
		t.Errorf("%d faults, want %d:\n%s", len(lines), len(want), strings.Join(lines, "\n"))
	}
	for _, w := range want {
		found := false
		for _, l := range lines {
			found = found || strings.HasPrefix(l, w)
		}
		if !found {
			t.Errorf("no fault begins with %q in\n%s", w, strings.Join(lines, "\n"))
		}
	}
}

func TestKeysAsTheSpecificationHasThem(t *testing.T) {
	for _, tc := range []struct {
		key Key
		ok  bool
	}{
		{Key{"a", "eth0"}, true},
		{Key{"0a_.-", "net-1.2"}, true},
		{Key{"", "eth0"}, false},
		{Key{"-a", "eth0"}, false},
		{Key{"a/b", "eth0"}, false},
		{Key{"ä", "eth0"}, false},
		{Key{"a", ""}, false},
		{Key{"a", "lo"}, false},
		{Key{"a", ".."}, false},
		{Key{"a", "a b"}, false},
		{Key{"a", "a:b"}, false},
		{Key{"a", "exactly15chars_"}, true},
		{Key{"a", "sixteencharacter"}, false},
	} {
		if err := tc.key.validate(); (err == nil) != tc.ok {
			t.Errorf("%q: %v, want ok=%v", tc.key, err, tc.ok)
		}
	}
}
