// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// web are the backends of the first address's port 80.
func web(t *testing.T, o Object) []Backend {
	t.Helper()
	entries, err := Compile(o, Node{Name: "here"})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Frontend.Addr.Is4() && e.Frontend.Port == 80 {
			return e.Backends
		}
	}
	t.Fatal("no frontend for 10.96.0.1:80")
	return nil
}

// TestCompileContradictions: slices that say different things of one endpoint
// never make two of it, and one that lives goes before one that ends, whatever
// their order.
func TestCompileContradictions(t *testing.T) {
	yes, no := true, false
	conditions := map[string]discoveryv1.EndpointConditions{
		"ready": {Ready: &yes}, "not ready": {Ready: &no, Serving: &no}, "ending": {Ready: &no, Serving: &yes, Terminating: &yes},
	}
	for _, c := range []struct {
		one, other string
		want       int // endpoints of 10.0.1.2
	}{
		{"ready", "ready", 1}, {"ready", "ending", 1}, {"ending", "not ready", 0}, {"not ready", "not ready", 0},
	} {
		for _, turned := range []bool{false, true} {
			o := object(func(*corev1.Service) {})
			i := slices.IndexFunc(o.Slices, func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == discoveryv1.AddressTypeIPv4 })
			o.Slices[i].Endpoints[0].Conditions = conditions[c.one]
			again := o.Slices[i].DeepCopy()
			again.Endpoints = again.Endpoints[:1]
			again.Endpoints[0].Conditions = conditions[c.other]
			o.Slices = append(o.Slices, again)
			if turned {
				slices.Reverse(o.Slices)
			}
			got := 0
			for _, b := range web(t, o) {
				if b.Addr == netip.MustParseAddr("10.0.1.2") {
					got++
				}
			}
			if got != c.want {
				t.Errorf("%s and %s (turned: %v): %d times in the backends, want %d", c.one, c.other, turned, got, c.want)
			}
		}
	}
}

// TestCompileNonsense: what cannot be served is left out and said; the rest is served.
func TestCompileNonsense(t *testing.T) {
	big, zero := int32(70000), int32(0)
	for what, change := range map[string]func(*Object){
		"port out of range":           func(o *Object) { o.Service.Spec.Ports[1].Port = 70000 },
		"port 0":                      func(o *Object) { o.Service.Spec.Ports[1].Port = 0 },
		"node port out of range":      func(o *Object) { o.Service.Spec.Ports[1].NodePort = 65536 },
		"negative node port":          func(o *Object) { o.Service.Spec.Ports[1].NodePort = -1 },
		"unknown protocol":            func(o *Object) { o.Service.Spec.Ports[1].Protocol = "DCCP" },
		"a cluster IP that is none":   func(o *Object) { o.Service.Spec.ClusterIPs[1] = "fd00::g" },
		"an external IP that is none": func(o *Object) { o.Service.Spec.ExternalIPs = []string{"300.1.1.1"} },
	} {
		o := object(func(*corev1.Service) {})
		change(&o)
		entries, err := Compile(o, Node{Name: "here"})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want %v", what, err, ErrInvalid)
		}
		if !slices.ContainsFunc(entries, func(e Entry) bool { return e.Frontend.Port == 80 && len(e.Backends) == 2 }) {
			t.Errorf("%s: the port that is right is not served", what)
		}
	}
	for what, change := range map[string]func(*discoveryv1.EndpointSlice){
		"endpoint port out of range": func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = &big },
		"endpoint port 0":            func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = &zero },
		"endpoint port without name": func(s *discoveryv1.EndpointSlice) { s.Ports[0].Name = nil },
		"addresses of the wrong family": func(s *discoveryv1.EndpointSlice) {
			for i := range s.Endpoints {
				s.Endpoints[i].Addresses = []string{"fd00::5"}
			}
		},
		"addresses that are none": func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].Addresses, s.Endpoints[1].Addresses = []string{"x"}, nil
		},
	} {
		o := object(func(*corev1.Service) {})
		for _, s := range o.Slices {
			if s.AddressType == discoveryv1.AddressTypeIPv4 {
				change(s)
			}
		}
		if got := web(t, o); len(got) != 0 {
			t.Errorf("%s: backends %v, want none", what, got)
		}
	}
}

// TestCompileMany: ten thousand endpoints in a hundred slices, each once.
func TestCompileMany(t *testing.T) {
	const n = 10000
	o := object(func(*corev1.Service) {})
	template := o.Slices[slices.IndexFunc(o.Slices, func(s *discoveryv1.EndpointSlice) bool { return s.AddressType == discoveryv1.AddressTypeIPv4 })]
	o.Slices = nil
	for i := range n {
		if i%100 == 0 {
			s := template.DeepCopy()
			s.Endpoints = nil
			o.Slices = append(o.Slices, s)
		}
		s := o.Slices[len(o.Slices)-1]
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.%d.%d", i/250, i%250)}})
	}
	got := web(t, o)
	if len(got) != n || !slices.IsSortedFunc(got, Backend.compare) {
		t.Errorf("%d backends, want %d in order", len(got), n)
	}
	if judged := Explain(o, Node{}, "web", true, false); len(judged) != n || !judged[n-1].Used {
		t.Errorf("%d endpoints judged, want %d", len(judged), n)
	}
}

// TestMaglevChurn: over a hundred changes of one backend each, a change moves
// the rows of that backend and few others, and shares stay even.
func TestMaglevChurn(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	pool := someBackends(40)
	have := slices.Clone(pool[:20])
	table := MaglevTable(have)
	others := 0
	for range 100 {
		var changed Backend
		if i := r.IntN(len(have)); len(have) > 30 || len(have) > 10 && r.IntN(2) == 0 {
			changed = have[i]
			have = slices.Delete(slices.Clone(have), i, i+1)
		} else {
			for changed = pool[r.IntN(len(pool))]; slices.Contains(have, changed); changed = pool[r.IntN(len(pool))] {
			}
			have = append(slices.Clone(have), changed)
			slices.SortFunc(have, Backend.compare)
		}
		next := MaglevTable(have)
		if len(next) == len(table) {
			moved := 0
			for i := range table {
				if table[i] != next[i] && table[i] != changed && next[i] != changed {
					moved++
				}
			}
			others = max(others, moved*100/len(table))
		}
		checkShares(t, next, have)
		table = next
	}
	if others > 15 {
		t.Errorf("a change of one backend moved %d %% of the rows of others, want 15 at most", others)
	}
}

// checkShares wants every backend to have about as many rows as the others.
func checkShares(t *testing.T, table, have []Backend) {
	t.Helper()
	share := map[Backend]int{}
	for _, b := range table {
		share[b]++
	}
	for _, b := range have {
		if even := len(table) / len(have); share[b] < even*9/10 || share[b] > even*11/10+1 {
			t.Errorf("%d backends: %v has %d rows, an even share is %d", len(have), b, share[b], even)
		}
	}
}
