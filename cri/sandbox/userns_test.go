// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// TestUserNamespacesRefused: a pod whose containers could not be made is
// refused with the reason before anything is (the manager has nothing to make
// it with), and no other pod is.
func TestUserNamespacesRefused(t *testing.T) {
	for _, c := range []struct {
		host    error
		handler bool
		want    string
	}{
		{errors.New("the kernel is from yesterday"), true, "the kernel is from yesterday"},
		{nil, false, `runtime handler "old" does not support user namespaces`},
	} {
		m := &Manager{deps: Deps{
			Spec: spec.Input{Host: spec.Host{NoUserNamespaces: c.host}},
			Handler: func(string) (Handler, error) {
				return Handler{Spec: spec.Handler{Name: "old", UserNamespaces: c.handler}}, nil
			},
		}}
		ids := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 65536}}
		cfg := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{
					Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids,
				}},
			}},
		}
		_, err := m.Run(t.Context(), cfg, "")
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v", err)
		}
		cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Mode = runtimeapi.NamespaceMode_NODE
		if err := m.userNamespaces(cfg, Handler{}); err != nil {
			t.Errorf("a pod without: %v", err)
		}
	}
}
