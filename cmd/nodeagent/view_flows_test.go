// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

func deniedFlow() flowView {
	return flowView{
		Time: time.Unix(0, 0), Verdict: "dropped", Reason: "policy_ingress", Hook: "from_pod", Protocol: "tcp", Bytes: 74,
		Src:   flowEnd{Addr: netip.MustParseAddr("10.0.0.5"), Port: 41000, Name: "shop/web-0"},
		Dst:   flowEnd{Addr: netip.MustParseAddr("10.96.0.9"), Port: 80},
		ToDst: &flowEnd{Addr: netip.MustParseAddr("10.0.1.7"), Port: 5432, Name: "data/db-0"}, Service: "data/db",
		Policies: []string{"data/db-clients"}, Lost: 3,
	}
}

func TestFlowFilter(t *testing.T) {
	for query, want := range map[string]bool{
		"": true, "all=true": true,
		"pod=shop/web-0": true, "pod=data/db-0": true, "pod=shop/web-1": false,
		"namespace=data": true, "namespace=dat": false,
		"service=data/db": true, "service=data/web": false,
		"address=10.0.1.7": true, "address=10.0.1.0/24": true, "address=10.0.2.0/24": false, "address=fd00::/8": false,
		"port=80": true, "port=5432": true, "port=443": false,
		"protocol=tcp": true, "protocol=udp": false, "protocol=47": false,
		"reason=policy_ingress": true, "reason=spoofed": false, "reason=spoofed&reason=policy_ingress": true,
		"pod=shop/web-0&port=443": false,
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parseFlowFilter(q)
		if err != nil || f.admits(deniedFlow()) != want {
			t.Errorf("%q admits it: %v, want %v (%v)", query, !want, want, err)
		}
	}
}

func TestFlowFilterFaults(t *testing.T) {
	for query, want := range map[string]string{
		"nope=1":         `unknown parameter "nope"`,
		"all=perhaps":    `all: "perhaps" is not true or false`,
		"pod=web":        `pod: "web" is not NAMESPACE/NAME`,
		"service=a/b/c":  `service: "a/b/c" is not NAMESPACE/NAME`,
		"address=10.0":   `address: "10.0" is neither an address nor a range`,
		"port=0":         `port: "0" is not a number from 1 to 65535`,
		"port=70000":     `port: "70000" is not a number from 1 to 65535`,
		"protocol=6":     `protocol: "6" is not one of tcp, udp`,
		"protocol=quic":  `protocol: "quic" is not one of tcp, udp`,
		"reason=because": `reason: nothing is dropped or forwarded for "because"`,
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseFlowFilter(q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", query, err, want)
		}
	}
}

func TestFlowStory(t *testing.T) {
	want := "shop/web-0 10.0.0.5:41000 -> 10.96.0.9:80 (service data/db) => data/db-0 10.0.1.7:5432, from_pod, 74 bytes, " +
		"isolated by data/db-clients [3 events before it were lost]"
	if got := deniedFlow().story(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
