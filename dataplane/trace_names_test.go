// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

func TestTraceToService(t *testing.T) {
	d, err := New(Default(), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	obj := newService("web", vips(1), 80)
	d.services = map[types.NamespacedName]service.Object{obj.Name(): obj}
	all := d.TraceToService(obj.Name(), "", 0)
	for _, vip := range vips(1) {
		for _, proto := range []uint8{service.TCP, service.UDP} {
			if want := (TraceRequest{Dst: netip.AddrPortFrom(vip, 80), Proto: proto}); !slices.Contains(all, want) {
				t.Errorf("%+v is not in %+v", want, all)
			}
		}
	}
	if got := d.TraceToService(obj.Name(), "80", service.UDP); len(got) != len(vips(1)) {
		t.Errorf("UDP port 80: %+v", got)
	}
	if got := d.TraceToService(obj.Name(), "81", 0); len(got) != 0 {
		t.Errorf("port 81: %+v", got)
	}
	if got := d.TraceToService(types.NamespacedName{Namespace: "default", Name: "none"}, "", 0); len(got) != 0 {
		t.Errorf("no service: %+v", got)
	}
}
