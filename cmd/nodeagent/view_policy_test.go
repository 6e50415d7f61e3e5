// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1":            "10.0.0.1 / 0 6",
		"10.0.0.1:80":         "10.0.0.1 / 80 6",
		"10.0.0.1:53/udp":     "10.0.0.1 / 53 17",
		"fd00::1":             "fd00::1 / 0 6",
		"[fd00::1]:80/sctp":   "fd00::1 / 80 132",
		"shop/db-0":           "invalid IP shop/db-0 0 6",
		"shop/db-0:5432":      "invalid IP shop/db-0 5432 6",
		"shop/db-0:53/udp":    "invalid IP shop/db-0 53 17",
		"shop/db-0/icmp":      "invalid IP shop/db-0 0 1",
		"db-0":                "",
		"shop/db-0:http":      "",
		"10.0.0.1:99999":      "",
		"shop/db/0":           "",
		"10.0.0.1:80/quic":    "",
		"[fd00::1:80":         "",
		"shop/db-0:80/tcp/ip": "",
	} {
		got := ""
		if to, err := parseTarget(in); err == nil {
			got = fmt.Sprint(to.addr, " ", to.pod, " ", to.port, " ", to.protocol)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
