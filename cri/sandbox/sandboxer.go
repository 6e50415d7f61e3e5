// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/store"
)

// In mode "shim" the handler's shim makes the sandbox, by containerd's Sandbox API: that of a virtual machine boots it. The
// pod's namespaces and files are made as ever, and the shim is told the network namespace and the pod's configuration.

// startSandboxer has the shim make the sandbox.
func (b *building) startSandboxer(ctx context.Context, h Handler) error {
	sb, cd := b.sb, b.m.deps.Containerd
	rec, err := json.Marshal(sb)
	if err != nil {
		return fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	err = cd.CreateSandbox(ctx, containerd.Sandbox{
		ID: sb.ID, Runtime: h.Runtime, NetNS: sb.Namespaces.Net, Config: sb.Config.M,
		Labels: map[string]string{labelKind: kindSandbox}, Extensions: map[string][]byte{extensionRecord: rec},
	})
	if err != nil {
		return err
	}
	pid, err := cd.StartSandbox(ctx, sb.ID)
	if err != nil || !sharesProcesses(sb) {
		return err
	}
	b.pidns = fmt.Sprintf("/proc/%d/ns/pid", pid)
	if !h.Runtime.RunsHere() {
		return nil // there is no such namespace here, and the machine's own is meant
	}
	return ofItsOwn(b.pidns)
}

// ofItsOwn refuses a process namespace that is the daemon's.
func ofItsOwn(path string) error {
	theirs, err := os.Readlink(path)
	if err != nil {
		return fmt.Errorf("process namespace of sandbox: %w", err)
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return fmt.Errorf("process namespace of the daemon: %w", err)
	}
	if ours == theirs {
		return fmt.Errorf("namespace_options.pid: the shim makes no process namespace for the pod: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// endProcess ends whatever process the sandbox has; the absent is removed already.
func (m *Manager) endProcess(ctx context.Context, sb *store.Sandbox) error {
	if sb.Sandboxer != "" {
		return m.deps.Containerd.RemoveSandbox(ctx, sb.ID)
	}
	return m.removeProcess(ctx, sb.ID)
}

// waitProcess waits for the end of the sandbox's process.
func (m *Manager) waitProcess(ctx context.Context, id string) error {
	if sb, ok := m.deps.Store.Sandboxes.Get(id); ok && sb.Sandboxer != "" {
		return m.deps.Containerd.WaitSandbox(ctx, id)
	}
	_, err := m.deps.Containerd.WaitProcess(ctx, containerd.Process{ContainerID: id})
	return err
}

// recoverSandboxers is recoverProcesses for those of shims.
func (m *Manager) recoverSandboxers(ctx context.Context) error {
	known, err := m.deps.Containerd.Sandboxes(ctx, labelKind, kindSandbox)
	if err != nil {
		return err
	}
	var errs []error
	for id, extensions := range known {
		if raw, ours := extensions[extensionRecord]; ours {
			errs = append(errs, m.recoverProcess(id, raw))
		}
	}
	return errors.Join(errs...)
}
