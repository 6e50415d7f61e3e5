// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

func TestRootExhaustion(t *testing.T) {
	l := newLab(t, func(c *Config) {
		c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.7.0.0/30"), netip.MustParsePrefix("fd77::/64")}
	})
	l.attach("only")
	before := l.world()
	req := Request{Key: Key{"more", "eth0"}, NetNS: netnstest.New(t)}
	if _, err := l.net.Attach(t.Context(), req); !errors.Is(err, ErrExhausted) {
		t.Errorf("Attach = %v, want ErrExhausted", err)
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
	if err := errors.Join(l.net.Status(t.Context())); err != nil {
		t.Errorf("Status = %v: a full node must not look broken", err)
	}
	if err := l.net.Capacity(); !errors.Is(err, ErrExhausted) {
		t.Errorf("Capacity = %v, want ErrExhausted", err)
	}
	if err := l.net.Detach(t.Context(), Key{"only", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.net.Attach(t.Context(), req); !errors.Is(err, ErrExhausted) {
		t.Errorf("Attach during the quarantine = %v, want ErrExhausted", err)
	}
	l.clock = l.cfg.Quarantine
	if _, err := l.net.Attach(t.Context(), req); err != nil {
		t.Errorf("Attach after the quarantine = %v", err)
	}
}

func TestRootPoolsAndAnnotations(t *testing.T) {
	blue := netip.MustParsePrefix("10.66.0.0/24")
	l := newLab(t, func(c *Config) {
		c.Pools = []Pool{
			{Name: "blue", CIDRs: []netip.Prefix{blue}, Namespaces: []string{"blue-ns"}},
			{Name: "red", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.67.0.0/24")}},
		}
	})
	for i, tc := range []struct {
		pod  Pod
		want string
		err  error
	}{
		{Pod{Namespace: "blue-ns"}, "10.66.0.2/32", nil},
		{Pod{Namespace: "blue-ns", Annotations: map[string]string{AnnotationPool: "red"}}, "10.67.0.2/32", nil},
		{Pod{Annotations: map[string]string{AnnotationAddresses: "10.66.0.77"}}, "10.66.0.77/32", nil},
		{Pod{Annotations: map[string]string{AnnotationAddresses: "10.66.0.77"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationAddresses: "10.66.0.1"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationAddresses: "x"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationPool: "green"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationMAC: "ff:ff:ff:ff:ff:ff"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationIngress: "1"}}, "", ErrInvalid},
		{Pod{Annotations: map[string]string{AnnotationEgress: "10M", AnnotationMAC: "0a:00:00:00:00:07"}}, "10.77.0.2/32", nil},
	} {
		id := fmt.Sprintf("pod-%d", i)
		res, err := l.net.Attach(t.Context(), Request{Key: Key{id, "eth0"}, NetNS: netnstest.New(t), Pod: tc.pod})
		if !errors.Is(err, tc.err) || err == nil && res.Addrs[0].String() != tc.want {
			t.Errorf("%+v: %+v, %v, want %s, %v", tc.pod, res, err, tc.want, tc.err)
		}
	}
	if ep := l.dp.eps["pod-9/eth0"]; ep.EgressRate != 10e6/8 || ep.MAC.String() != "0a:00:00:00:00:07" {
		t.Errorf("endpoint %+v", ep)
	}
}
