// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/hooks"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Labels and extensions of a container in containerd. The labels are those of
// containerd's own CRI plugin, which the kubelet's cAdvisor and other tools read.
const (
	labelKind       = "io.cri-containerd.kind"
	kindContainer   = "container"
	extensionRecord = "nodeagent.dev/container.v1"
	extensionPod    = "nodeagent.dev/sandbox.v1"
	// annotationGroup puts all containers of a pod under one shim.
	annotationGroup = "io.containerd.runc.v2.group"
)

// Create makes a container in a ready sandbox and returns its id. A repetition
// of the request joins the first or gets its result; another request for the
// same name and attempt is ErrAlreadyExists.
func (m *Manager) Create(ctx context.Context, sandboxRef string, cfg *runtimeapi.ContainerConfig) (string, error) {
	return m.Restore(ctx, sandboxRef, cfg, "")
}

// Restore is Create of a container that goes on from the archive source, which wins over
// the image, when it is started. The archive must be of such a container.
func (m *Manager) Restore(ctx context.Context, sandboxRef string, cfg *runtimeapi.ContainerConfig, source string) (string, error) {
	if err := validate(cfg); err != nil {
		return "", err
	}
	sb, err := m.deps.Store.Sandboxes.Find(sandboxRef)
	if err != nil {
		return "", err
	}
	name := containerKey(sb.ID, cfg.GetMetadata())
	taken := func(other any) error {
		if o, ok := other.(*runtimeapi.ContainerConfig); ok && proto.Equal(o, cfg) {
			return nil
		}
		return fmt.Errorf("container %s is being made from another request: %w", name, errdefs.ErrAlreadyExists)
	}
	return m.creates.DoSame(ctx, name, cfg, taken, func(ctx context.Context) (string, error) {
		for _, c := range m.deps.Store.ContainersOf(sb.ID) {
			if containerKey(sb.ID, c.Config.M.GetMetadata()) != name {
				continue
			}
			if c.State == store.ContainerCreated && proto.Equal(c.Config.M, cfg) {
				return c.ID, nil
			}
			return "", fmt.Errorf("container %s exists as %s: %w", name, c.ID, errdefs.ErrAlreadyExists)
		}
		return m.create(ctx, sb.ID, cfg, source)
	})
}

func containerKey(sandboxID string, md *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s_%d_%s", md.GetName(), md.GetAttempt(), sandboxID)
}

func (m *Manager) create(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig, source string) (string, error) {
	id := store.NewID()
	ctx, end := m.deps.Stages.Time(ctx, "CreateContainer", id)
	defer end()
	resolving := steps.Stage(ctx, "resolve image")
	b := &building{m: m, id: id}
	if source != "" {
		b.restore = &restoring{source: source, strict: true}
	}
	if err := b.prepare(resolving, sandboxID, cfg); err != nil {
		return "", err
	}
	// A sandbox that is being stopped waits for the lock's holder or is seen as stopped here.
	unlock, err := m.locks.Lock(ctx, b.c.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := m.deps.Store.Containers.Put(b.c); err != nil {
		return "", err
	}
	err = steps.Run(ctx, b.table())
	if err == nil {
		m.deps.Notify(b.c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		m.tell(ctx, nri.ContainerCreated, b.c)
		return b.c.ID, nil
	}
	return "", errors.Join(err, m.abandon(b.c.ID, err))
}

// abandon forgets a container that was undone. One that was not is kept as
// exited, so that remove finishes the work.
func (m *Manager) abandon(id string, cause error) error {
	var se *steps.Error
	if !errors.As(cause, &se) || se.Undo == nil {
		return m.deps.Store.Containers.Delete(id)
	}
	return m.markHalfMade(id, cause)
}

func (m *Manager) markHalfMade(id string, cause error) error {
	_, err := m.deps.Store.Containers.Update(id, func(c *store.Container) error {
		c.State, c.FinishedAt = store.ContainerExited, time.Now().UnixNano()
		c.ExitCode, c.Reason, c.Message = store.ExitStartError, store.ReasonStartError, cause.Error()
		return nil
	})
	return err
}

// building is one container under construction.
type building struct {
	m       *Manager
	id      string
	c       *store.Container
	sb      *store.Sandbox
	image   Image
	handler sandbox.Handler
	// restore is nil for a container that begins anew.
	restore *restoring
}

// prepare finds everything the container is made from and changes nothing.
func (b *building) prepare(ctx context.Context, sandboxID string, cfg *runtimeapi.ContainerConfig) error {
	sb, ok := b.m.deps.Store.Sandboxes.Get(sandboxID)
	if !ok {
		return fmt.Errorf("sandbox %q: %w", sandboxID, errdefs.ErrNotFound)
	}
	if sb.State != store.SandboxReady {
		return fmt.Errorf("sandbox %s is not ready: %w", sandboxID, errdefs.ErrFailedPrecondition)
	}
	var err error
	if b.handler, err = b.m.deps.Handler(sb.Handler); err != nil {
		return err
	}
	b.sb = sb
	snapshotter := b.m.deps.Containerd.Snapshotter(b.handler.Snapshotter)
	if err := b.findImage(ctx, cfg.GetImage()); err != nil {
		return err
	}
	id := b.id
	b.c = &store.Container{
		ID: id, SandboxID: sandboxID, Handler: sb.Handler, State: store.ContainerCreating,
		CreatedAt: time.Now().UnixNano(), ImageID: b.image.ID, ImageRef: b.image.Ref, ImageName: b.image.Tag,
		Snapshotter: snapshotter, SnapshotKey: id, Stdin: cfg.GetStdin(),
		CgroupsPath: spec.CgroupsPath(sb.Config.M.GetLinux().GetCgroupParent(), id),
	}
	b.c.Config.M = cfg
	if p := cfg.GetLogPath(); p != "" && sb.Config.M.GetLogDirectory() != "" {
		b.c.LogPath = filepath.Join(sb.Config.M.GetLogDirectory(), p)
	}
	return nil
}

// dir is the container's directory of run-time files.
func (m *Manager) dir(c *store.Container) string {
	return m.deps.SandboxDir(c.SandboxID).Container(c.ID)
}

// root is the container's directory on disk.
func (m *Manager) root(id string) string { return filepath.Join(m.cfg.RootDir, id) }

// table is the construction of a container. The record that says "creating" is
// written before and outlives a failed undo.
func (b *building) table() []steps.Step {
	m, c := b.m, b.c
	t := []steps.Step{
		{
			Name: "make directory",
			Do: func(context.Context) error {
				if err := os.MkdirAll(m.dir(c), 0o700); err != nil {
					return fmt.Errorf("make container directory: %w", err)
				}
				return nil
			},
			Undo: func(context.Context) error { return m.removeDirs(c) },
		},
		{
			Name: "prepare root file system",
			Do:   b.prepareSnapshot,
			Undo: func(ctx context.Context) error {
				return m.deps.Containerd.RemoveSnapshot(ctx, c.Snapshotter, c.SnapshotKey)
			},
		},
	}
	if b.restore != nil { // what it writes goes with the steps before
		t = append(t, steps.Step{Name: "unpack checkpoint", Do: b.unpackCheckpoint})
	}
	return append(
		t,
		steps.Step{
			Name: "create container",
			Do:   b.createInContainerd,
			Undo: func(ctx context.Context) error {
				m.tell(ctx, nri.ContainerUndone, c)
				m.releaseLabel(c)
				return m.deps.Containerd.DeleteContainer(ctx, c.ID)
			},
		},
		steps.Step{Name: "commit", Do: b.commit},
	)
}

// prepareSnapshot makes the writable layer, unpacking the image when its layers
// were collected or pulled for another snapshotter.
func (b *building) prepareSnapshot(ctx context.Context) error {
	cd, c, labels := b.m.deps.Containerd, b.c, b.snapshotLabels()
	mounts, err := cd.PrepareSnapshot(ctx, c.Snapshotter, c.SnapshotKey, b.image.ChainID, labels)
	if errdefs.IsNotFound(err) {
		if err := b.m.deps.Images.Unpack(ctx, b.image, c.Snapshotter); err != nil {
			return err
		}
		mounts, err = cd.PrepareSnapshot(ctx, c.Snapshotter, c.SnapshotKey, b.image.ChainID, labels)
	}
	if err != nil {
		return err
	}
	b.m.mounts.put(c.ID, mounts)
	return nil
}

// snapshotLabels make the snapshotter map the owners of files for pods with a
// user namespace.
func (b *building) snapshotLabels() map[string]string {
	u := b.sb.NamespaceOptions().GetUsernsOptions()
	if u.GetMode() != runtimeapi.NamespaceMode_POD || len(u.GetUids()) == 0 || len(u.GetGids()) == 0 {
		return nil
	}
	uid, gid := u.GetUids()[0], u.GetGids()[0]
	return map[string]string{
		snapshots.LabelSnapshotUIDMapping: fmt.Sprintf("%d:%d:%d", uid.GetContainerId(), uid.GetHostId(), uid.GetLength()),
		snapshots.LabelSnapshotGIDMapping: fmt.Sprintf("%d:%d:%d", gid.GetContainerId(), gid.GetHostId(), gid.GetLength()),
	}
}

// createInContainerd builds the specification and hands it over.
func (b *building) createInContainerd(ctx context.Context) error {
	root := &imageRoot{ctx: ctx, m: b.m, c: b.c}
	defer root.close()
	in, err := b.input(ctx, root)
	if err != nil {
		return err
	}
	out, err := spec.Build(in)
	if err != nil {
		return err
	}
	if out.Spec.Annotations == nil {
		out.Spec.Annotations = map[string]string{}
	}
	out.Spec.Annotations[annotationGroup] = b.sb.ID
	b.c.StopSignal = out.StopSignal
	if out.NewLabels {
		b.c.OwnLabel = out.Labels.Process
	}
	b.c.User.M = &runtimeapi.ContainerUser{Linux: out.User}
	if err := b.checkRestored(out.Spec); err != nil {
		return err
	}
	if err := b.m.hooks.Inject(out.Spec, hooks.Container{
		Annotations: b.c.Config.M.GetAnnotations(), HasBindMounts: len(b.c.Config.M.GetMounts()) > 0,
	}); err != nil {
		return err
	}
	if err := b.m.deps.Plugins.Adjust(ctx, b.sb, b.c, out.Spec); err != nil {
		return err
	}
	if out.Spec.Linux != nil && out.Spec.Linux.CgroupsPath != "" {
		b.c.CgroupsPath = out.Spec.Linux.CgroupsPath
	}
	b.c.Resources.M = spec.InForce(b.c.Config.M.GetLinux().GetResources(), out.Spec)
	ext, err := b.extensions()
	if err != nil {
		return err
	}
	labels := map[string]string{labelKind: kindContainer}
	maps.Copy(labels, b.c.Config.M.GetLabels())
	runtime := b.handler.Runtime
	if b.sb.Sandboxer != "" {
		runtime.Sandbox = b.sb.ID
	}
	return b.m.deps.Containerd.CreateContainer(ctx, containerd.Container{
		ID: b.c.ID, Labels: labels, Image: b.image.Name, Runtime: runtime,
		Snapshotter: b.c.Snapshotter, SnapshotKey: b.c.SnapshotKey, Spec: out.Spec, Extensions: ext,
	})
}

// extensions are what is needed to list the container as exited after a
// reboot, when only containerd remembers it.
func (b *building) extensions() (map[string][]byte, error) {
	c, err := json.Marshal(b.c)
	if err != nil {
		return nil, fmt.Errorf("encode container %s: %w", b.c.ID, err)
	}
	s, err := json.Marshal(b.sb)
	if err != nil {
		return nil, fmt.Errorf("encode sandbox %s: %w", b.sb.ID, err)
	}
	return map[string][]byte{extensionRecord: c, extensionPod: s}, nil
}

// accounts is where the container's user is looked up. A checkpoint may have changed what the image has.
func (b *building) accounts(root *imageRoot) fs.FS {
	r := rememberedRoot{files: &b.m.accounts, image: b.image.ChainID, root: root}
	if b.restore != nil {
		r.image = ""
	}
	return r
}

func (b *building) input(ctx context.Context, root *imageRoot) (spec.Input, error) {
	dir := b.m.deps.SandboxDir(b.sb.ID)
	in := b.m.deps.Spec
	in.ID = b.c.ID
	in.Config = b.c.Config.M
	in.Handler = b.handler.Spec
	in.Image = spec.Image{Name: b.image.Name, Config: b.image.Config, Rootfs: b.accounts(root)}
	in.Sandbox = spec.Sandbox{
		ID: b.sb.ID, Config: b.sb.Config.M,
		Namespaces: spec.Namespaces(b.sb.Namespaces),
		Hostname:   dir.Hostname(), Hosts: dir.Hosts(), ResolvConf: dir.ResolvConf(),
		ProcessLabel: b.sb.ProcessLabel, MountLabel: b.sb.MountLabel,
	}
	o := b.c.Config.M.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if b.sb.NamespaceOptions().GetIpc() != runtimeapi.NamespaceMode_NODE {
		in.Sandbox.Shm = dir.Shm()
	}
	if o.GetPid() == runtimeapi.NamespaceMode_TARGET {
		pid, err := b.m.targetPID(b.sb.ID, o.GetTargetId())
		if err != nil {
			return in, err
		}
		in.Sandbox.TargetPID = pid
	}
	vols, err := b.volumes(root)
	if err != nil {
		return in, err
	}
	in.Image.Volumes = vols
	in.Image.Mounts, err = b.imageMounts(ctx)
	return in, err
}

// targetPID returns the PID namespace of a running container of the same pod.
func (m *Manager) targetPID(sandboxID, ref string) (string, error) {
	t, err := m.Running(ref)
	if err != nil {
		return "", fmt.Errorf("linux.security_context.namespace_options.target_id: %w", err)
	}
	if t.SandboxID != sandboxID {
		return "", fmt.Errorf("linux.security_context.namespace_options.target_id: container %s is in another sandbox: %w",
			t.ID, errdefs.ErrInvalidArgument)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", t.PID), nil
}

func (b *building) commit(context.Context) error {
	// The sandbox may have been stopped meanwhile; its stop does not see a
	// container that is being made.
	if sb, ok := b.m.deps.Store.Sandboxes.Get(b.sb.ID); !ok || sb.State != store.SandboxReady {
		return fmt.Errorf("sandbox %s was stopped: %w", b.sb.ID, errdefs.ErrFailedPrecondition)
	}
	c, err := b.m.deps.Store.Containers.Update(b.c.ID, func(c *store.Container) error {
		*c = *b.c
		c.State = store.ContainerCreated
		return nil
	})
	if err == nil {
		b.c = c
	}
	return err
}
