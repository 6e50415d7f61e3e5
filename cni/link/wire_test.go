// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
)

func TestNamesAndAddressesOfAnAttachment(t *testing.T) {
	seen := map[string]bool{}
	for i := range 10000 {
		id := fmt.Sprintf("%064x/eth0", i)
		name := HostName("nap", id)
		if len(name) > 15 || seen[name] {
			t.Fatalf("name %q of %s is too long or taken", name, id)
		}
		seen[name] = true
		pod, host := MACs(id)
		if pod[0]&3 != 2 || host[0]&3 != 2 || bytes.Equal(pod, host) || len(pod) != 6 || len(host) != 6 {
			t.Fatalf("addresses %s and %s: not two of local administration", pod, host)
		}
	}
	a, b := MACs("x/eth0")
	c, d := MACs("x/eth0")
	if !bytes.Equal(a, c) || !bytes.Equal(b, d) {
		t.Error("asked again, the addresses differ")
	}
}

func TestGatewayIsOfTheFamily(t *testing.T) {
	for addr, want := range map[string]string{"10.0.0.1": "169.254.1.1", "fd00::1": "fe80::1"} {
		if got := Gateway(netip.MustParseAddr(addr)); got.String() != want {
			t.Errorf("Gateway(%s) = %s, want %s", addr, got, want)
		}
	}
}
