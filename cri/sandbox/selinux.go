// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// labels reserves the SELinux labels that a pod's containers share, so that
// they can share its volumes; none without SELinux or for privileged pods.
func (m *Manager) labels(sc *runtimeapi.LinuxSandboxSecurityContext) (spec.Labels, error) {
	if !m.deps.Spec.Host.SELinux {
		return spec.Labels{}, nil
	}
	options := []string{"disable"}
	if !sc.GetPrivileged() {
		options = labelOptions(sc.GetSelinuxOptions())
	}
	l, err := m.deps.Spec.System.Labels(options)
	if err != nil {
		return spec.Labels{}, fmt.Errorf("linux.security_context.selinux_options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return l, nil
}

func labelOptions(o *runtimeapi.SELinuxOption) []string {
	var out []string
	for _, f := range []struct{ name, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		if f.value != "" {
			out = append(out, f.name+":"+f.value)
		}
	}
	return out
}

// release gives a pod's labels back.
func (m *Manager) release(process string) {
	if process != "" {
		m.deps.Spec.System.Release(process)
	}
}

// reserve keeps the labels of a pod that an earlier daemon made from being
// given to another one.
func reserve(sb *store.Sandbox) error {
	if sb.ProcessLabel == "" {
		return nil
	}
	if err := selinux.ReserveLabelV2(sb.ProcessLabel); err != nil {
		return fmt.Errorf("reserve label of sandbox %s: %w", sb.ID, err)
	}
	return nil
}

// withLabel adds the label to a file system's mount data; "" adds nothing.
func withLabel(data, mountLabel string) string { return label.FormatMountLabel(data, mountLabel) }
