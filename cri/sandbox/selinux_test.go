// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// labeller is a machine with SELinux.
type labeller struct {
	spec.System
	asked, released []string
	fail            error
}

func (l *labeller) Labels(options []string) (spec.Labels, error) {
	l.asked = options
	return spec.Labels{Process: "u:r:t:s0:c1,c2", Mount: "u:r:f:s0:c1,c2"}, l.fail
}

func (l *labeller) Release(process string) { l.released = append(l.released, process) }

func TestLabels(t *testing.T) {
	l := &labeller{}
	m := &Manager{deps: Deps{Spec: spec.Input{Host: spec.Host{SELinux: true}, System: l}}}
	o := &runtimeapi.SELinuxOption{Type: "t", Level: "s0:c1,c2"}
	for _, tc := range []struct {
		name string
		sc   *runtimeapi.LinuxSandboxSecurityContext
		want []string
	}{
		{"none", nil, nil},
		{"some", &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: o}, []string{"type:t", "level:s0:c1,c2"}},
		{"privileged", &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: o, Privileged: true}, []string{"disable"}},
	} {
		got, err := m.labels(tc.sc)
		if err != nil || got.Process == "" || !slices.Equal(l.asked, tc.want) {
			t.Errorf("%s: asked %v, got %v, %v", tc.name, l.asked, got, err)
		}
	}
	l.fail = errors.New("no such level")
	if _, err := m.labels(nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	m.release("")
	m.release("u:r:t:s0:c1,c2")
	if len(l.released) != 1 {
		t.Errorf("released %v", l.released)
	}
	m.deps.Spec.Host.SELinux = false
	if got, err := m.labels(nil); err != nil || got.Process != "" {
		t.Errorf("without SELinux: %v, %v", got, err)
	}
}
