// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
)

// RuncType is the runtime type of containerd's own shim for runc.
const RuncType = "io.containerd.runc.v2"

// ShimType is the runtime type of nodeagent's own shim, which takes the same options.
const ShimType = "io.containerd.nodeagent.v1"

// Runtime says which shim and OCI runtime run a container.
type Runtime struct {
	// Type is a shim's runtime type, "io.containerd.runc.v2".
	Type string
	// Path of the shim's binary; "" lets containerd derive it from Type.
	Path string
	// Binary is the OCI runtime's name or path; "" is the shim's default.
	Binary string
	// Root is the OCI runtime's state directory; "" is the shim's default.
	Root string
	// SystemdCgroup makes the OCI runtime ask systemd for cgroups.
	SystemdCgroup bool
	// Joins says that tasks may be made in a shim that runs already, and Address which.
	Joins   bool
	Address string
	// PodsPerShim is how many pods have one shim, 0 and 1 meaning one.
	PodsPerShim int
	// Sandbox is the id of the sandbox of CreateSandbox in whose shim tasks are made; "" for others.
	Sandbox string
	// RestoreFrom is a directory of CRIU's images that the task goes on from; "" for a new one.
	RestoreFrom string
	// ConfigPath is handed to shims that read a configuration file of their own.
	ConfigPath string
}

// RunsHere says that containers are processes of this node, as those of runc.
func (r Runtime) RunsHere() bool { return r.Type == ShimType || strings.Contains(r.Type, ".runc.") }

// name is how containerd finds the shim: by its path, where that is configured.
func (r Runtime) name() string {
	if r.Path != "" {
		return r.Path
	}
	return r.Type
}

// options returns what containerd passes to the shim. Only shims of the runc
// family know these; others get none.
func (r Runtime) options() (typeurl.Any, error) {
	if r.Type != RuncType && r.Type != ShimType && r.Binary == "" && r.Root == "" {
		return nil, nil //nolint:nilnil // no options is a valid answer
	}
	v, err := typeurl.MarshalAny(&options.Options{
		BinaryName: r.Binary, Root: r.Root, SystemdCgroup: r.SystemdCgroup,
	})
	if err != nil {
		return nil, fmt.Errorf("encode options of runtime %s: %w", r.Type, err)
	}
	return v, nil
}
