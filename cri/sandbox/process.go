// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/sandbox/podinit"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Labels and extensions of a sandbox's process in containerd; the label is that
// of containerd's own CRI plugin, which other tools read.
const (
	labelKind       = "io.cri-containerd.kind"
	kindSandbox     = "sandbox"
	extensionRecord = "nodeagent.dev/sandbox.v1"
	annotationGroup = "io.containerd.runc.v2.group"
)

// Handler is how a runtime handler runs containers.
type Handler struct {
	Runtime containerd.Runtime
	// Snapshotter is "" for containerd's configured one.
	Snapshotter string
	Spec        spec.Handler
	// Mode is that of the handler's sandboxes; "" is the configured one.
	Mode string
}

// sharesProcesses tells whether the pod's containers are in one process namespace of their own.
func sharesProcesses(sb *store.Sandbox) bool {
	return sb.NamespaceOptions().GetPid() == runtimeapi.NamespaceMode_POD
}

// hasProcess tells whether the sandbox gets a process, and from whom: "" is a container.
func (m *Manager) hasProcess(sb *store.Sandbox, h Handler) (has bool, sandboxer string) {
	mode := h.Mode
	if mode == "" {
		mode = m.cfg.Mode
	}
	if mode == ModeShim {
		return true, ModeShim
	}
	return sharesProcesses(sb) || mode == ModePause, ""
}

// initPath is the program's name in its root.
const initPath = "/podinit"

// initRoot makes the root file system that all sandbox processes share: the
// program, and mount points, for an unprivileged user could not make them.
func (m *Manager) initRoot() (string, error) {
	root := filepath.Join(m.cfg.RootDir, "podinit")
	for _, d := range []string{"proc", "sys", "dev", "etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil { //nolint:gosec // every user of a pod may look into it
			return "", fmt.Errorf("make root of sandbox process: %w", err)
		}
	}
	for _, f := range []string{"hostname", "hosts", "resolv.conf"} {
		h, err := os.OpenFile(filepath.Join(root, "etc", f), os.O_CREATE|os.O_RDONLY, 0o644) //nolint:gosec // as above
		if err != nil {
			return "", fmt.Errorf("make root of sandbox process: %w", err)
		}
		if err := h.Close(); err != nil {
			return "", fmt.Errorf("make root of sandbox process: %w", err)
		}
	}
	return root, writeProgram(filepath.Join(root, initPath))
}

// writeProgram replaces the program when it is another one; it may be running.
func writeProgram(path string) error {
	if b, err := os.ReadFile(path); err == nil && string(b) == string(podinit.Binary()) {
		return nil
	}
	tmp := path + ".new-" + store.NewID()[:8]
	if err := os.WriteFile(tmp, podinit.Binary(), 0o755); err != nil { //nolint:gosec // every user of a pod runs it
		return fmt.Errorf("write program of sandbox process: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write program of sandbox process: %w", err)
	}
	return nil
}

// startProcess makes the sandbox's process and pins its PID namespace.
func (b *building) startProcess(ctx context.Context) error {
	m, sb := b.m, b.sb
	h, err := m.deps.Handler(sb.Handler)
	if err != nil {
		return err
	}
	if sb.Sandboxer != "" {
		return b.startSandboxer(ctx, h)
	}
	root, err := m.initRoot()
	if err != nil {
		return err
	}
	s, err := m.processSpec(sb, h)
	if err != nil {
		return err
	}
	s.Root.Path = root
	s.Annotations[annotationGroup] = sb.ID
	rec, err := json.Marshal(sb)
	if err != nil {
		return fmt.Errorf("encode sandbox %s: %w", sb.ID, err)
	}
	labels := maps.Clone(sb.Config.M.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelKind] = kindSandbox
	err = m.deps.Containerd.CreateContainer(ctx, containerd.Container{
		ID: sb.ID, Labels: labels, Runtime: h.Runtime, Spec: s, Extensions: map[string][]byte{extensionRecord: rec},
	})
	if err != nil {
		return err
	}
	pid, err := m.deps.Containerd.CreateTask(ctx, sb.ID, h.Runtime, nil, containerd.Streams{})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.pins(sb.ID), 0o700); err != nil {
		return fmt.Errorf("make directory of namespaces: %w", err)
	}
	if sharesProcesses(sb) {
		b.pidns = filepath.Join(m.pins(sb.ID), "pid")
		if err := pinFile(fmt.Sprintf("/proc/%d/ns/pid", pid), b.pidns); err != nil {
			return err
		}
	}
	_, err = m.deps.Containerd.StartProcess(ctx, containerd.Process{ContainerID: sb.ID})
	return err
}

func (m *Manager) processSpec(sb *store.Sandbox, h Handler) (*specs.Spec, error) {
	dir := m.Dir(sb.ID)
	in := spec.SandboxInput{
		Sandbox: spec.Sandbox{
			ID: sb.ID, Config: sb.Config.M, Namespaces: spec.Namespaces(sb.Namespaces),
			Hostname: dir.Hostname(), Hosts: dir.Hosts(), ResolvConf: dir.ResolvConf(),
			ProcessLabel: sb.ProcessLabel, MountLabel: sb.MountLabel,
		},
		Args: []string{initPath},
		Host: m.deps.Spec.Host, Handler: h.Spec, Policy: m.deps.Spec.Policy, System: m.deps.Spec.System,
	}
	if sb.NamespaceOptions().GetIpc() != runtimeapi.NamespaceMode_NODE {
		in.Sandbox.Shm = dir.Shm()
	}
	out, err := spec.BuildSandbox(in)
	if err != nil {
		return nil, err
	}
	return out.Spec, nil
}

// removeProcess ends and removes the sandbox's process; the absent is removed already.
func (m *Manager) removeProcess(ctx context.Context, id string) error {
	c, p := m.deps.Containerd, containerd.Process{ContainerID: id}
	absent := func(err error) error {
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	_, err := c.DeleteTask(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		if err := absent(c.KillProcess(ctx, p, unix.SIGKILL)); err != nil {
			return err
		}
		if _, err := c.WaitProcess(ctx, p); absent(err) != nil {
			return err
		}
		if _, err := c.DeleteTask(ctx, id); absent(err) != nil {
			return err
		}
	}
	return c.DeleteContainer(ctx, id)
}

// Delays between two tries to learn of a process's end while containerd is away.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = 2 * time.Second
)

// followProcess marks the sandbox as not ready when its process has ended.
func (m *Manager) followProcess(id string) {
	m.background(func(ctx context.Context) {
		for delay := retryFirst; ; delay = min(2*delay, retryLast) {
			err := m.waitProcess(ctx, id)
			if err == nil || errdefs.IsNotFound(err) {
				m.processEnded(ctx, id)
				return
			}
			t := time.NewTimer(delay)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
		}
	})
}

// errStill leaves a record as it is.
var errStill = errors.New("not ready already")

func (m *Manager) processEnded(ctx context.Context, id string) {
	sb, err := m.deps.Store.Sandboxes.Update(id, func(s *store.Sandbox) error {
		if s.State != store.SandboxReady {
			return errStill
		}
		s.State = store.SandboxNotReady
		return nil
	})
	if err != nil {
		return // it was stopped, or has gone
	}
	m.deps.Log.InfoContext(ctx, "sandbox process ended", "sandbox", id)
	m.deps.Notify(sb, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// recoverProcesses follows the processes of ready sandboxes again and removes
// those that no record owns. A process that only containerd knows, as after a
// reboot, brings its sandbox back as one that is not ready.
func (m *Manager) recoverProcesses(ctx context.Context) error {
	known, err := m.deps.Containerd.ListContainers(ctx, fmt.Sprintf("labels.%q==%s", labelKind, kindSandbox))
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range known {
		raw, ours := k.Extensions[extensionRecord]
		if !ours {
			continue
		}
		errs = append(errs, m.recoverProcess(k.ID, raw))
	}
	return errors.Join(errs...)
}

// recoverProcess follows the process of a ready sandbox, or brings the sandbox of a
// record back that only containerd has.
func (m *Manager) recoverProcess(id string, raw []byte) error {
	if sb, ok := m.deps.Store.Sandboxes.Get(id); ok {
		if sb.State == store.SandboxReady {
			m.followProcess(id)
		}
		return nil
	}
	var sb store.Sandbox
	if err := json.Unmarshal(raw, &sb); err != nil {
		return fmt.Errorf("decode record of sandbox %s: %w", id, err)
	}
	sb.State, sb.Addrs = store.SandboxNotReady, nil
	return m.deps.Store.Sandboxes.Put(&sb)
}
