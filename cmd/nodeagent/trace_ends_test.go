// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

func TestTraceEnds(t *testing.T) {
	for s, want := range map[string]traceEnd{
		"default/web":                 {name: types.NamespacedName{Namespace: "default", Name: "web"}},
		"kube-system/kube-dns:dns":    {types.NamespacedName{Namespace: "kube-system", Name: "kube-dns"}, "dns", ""},
		"kube-system/kube-dns:53/udp": {types.NamespacedName{Namespace: "kube-system", Name: "kube-dns"}, "53", "udp"},
	} {
		if got, named := parseTraceEnd(s); !named || got != want {
			t.Errorf("%s: %+v, %v; want %+v", s, got, named, want)
		}
	}
	for _, s := range []string{"10.0.0.1", "10.0.0.1:53/udp", "10.0.0.1/udp", "[fd00::1]:53/udp", "fd00::1/tcp", "/web", "default/"} {
		if got, named := parseTraceEnd(s); named {
			t.Errorf("%s is the name %+v", s, got)
		}
	}
	for ends, ok := range map[[2]string]bool{
		{"default/a", "default/web:80/tcp"}: true,
		{"10.0.0.1", "default/web"}:         true,
		{"default/a", "10.0.0.1:80"}:        true,
		{"default/a:80", "default/web"}:     false,
		{"default/a", "default/web/icmp"}:   false,
		{"default/a", "default/"}:           false,
		{"a", "default/web"}:                false,
	} {
		if err := checkTrace(ends[0], ends[1]); (err == nil) != ok {
			t.Errorf("%v: %v", ends, err)
		}
	}
}
