// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// request is what a run was asked for, to tell a retry from another request.
type request struct {
	cfg     *runtimeapi.PodSandboxConfig
	handler string
}

func (r request) same(o request) bool {
	return r.handler == o.handler && proto.Equal(r.cfg, o.cfg)
}

// podKey is what must be unique among sandboxes.
func podKey(md *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", md.GetName(), md.GetNamespace(), md.GetUid(), md.GetAttempt())
}

// Run makes a sandbox and returns its id. A repetition of the request joins
// the first or gets its result; another request for the same pod and attempt
// is ErrAlreadyExists.
func (m *Manager) Run(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := validate(cfg); err != nil {
		return "", err
	}
	h, err := m.deps.Handler(handler)
	if err != nil {
		return "", err
	}
	if err := m.userNamespaces(cfg, h); err != nil {
		return "", err
	}
	req := request{cfg: cfg, handler: handler}
	key := podKey(cfg.GetMetadata())
	taken := func(other any) error {
		if r, ok := other.(request); ok && r.same(req) {
			return nil
		}
		return fmt.Errorf("sandbox %s is being made from another request: %w", key, errdefs.ErrAlreadyExists)
	}
	return m.runs.DoSame(ctx, key, req, taken, func(ctx context.Context) (string, error) {
		old := m.deps.Store.Sandboxes.Select(func(s *store.Sandbox) bool { return podKey(s.Config.M.GetMetadata()) == key })
		if len(old) > 0 {
			s := old[0]
			if s.State == store.SandboxReady && (request{s.Config.M, s.Handler}).same(req) {
				return s.ID, nil
			}
			return "", fmt.Errorf("sandbox %s exists as %s: %w", key, s.ID, errdefs.ErrAlreadyExists)
		}
		return m.run(ctx, req, h)
	})
}

func (m *Manager) run(ctx context.Context, req request, h Handler) (string, error) {
	id := store.NewID()
	ctx, end := m.deps.Stages.Time(ctx, "RunPodSandbox", id)
	defer end()
	defer m.pool.making()()
	steps.Stage(ctx, "record intent")
	flags := wanted(req.cfg.GetLinux().GetSecurityContext().GetNamespaceOptions())
	sb := &store.Sandbox{
		ID: id, Handler: req.handler, State: store.SandboxCreating, CreatedAt: time.Now().UnixNano(),
		Namespaces: paths(m.pins(id), flags),
		NetworkUp:  flags&unix.CLONE_NEWNET != 0,
	}
	sb.Config.M = req.cfg
	sb.Process, sb.Sandboxer = m.hasProcess(sb, h)
	if _, err := networkRequest(sb); err != nil {
		return "", err
	}
	labels, err := m.labels(req.cfg.GetLinux().GetSecurityContext())
	if err != nil {
		return "", err
	}
	sb.ProcessLabel, sb.MountLabel = labels.Process, labels.Mount
	if err := m.deps.Store.Sandboxes.Put(sb); err != nil {
		m.release(labels.Process)
		return "", err
	}
	build := &building{m: m, sb: sb, flags: flags}
	err = steps.Run(ctx, build.table())
	if err == nil {
		m.tell(ctx, nri.SandboxReady, build.sb)
		if build.sb.Process {
			m.followProcess(id)
		}
		m.deps.Notify(build.sb, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		m.deps.Notify(build.sb, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		return id, nil
	}
	return "", errors.Join(err, m.abandon(id, err))
}

// userNamespaces refuses a pod with a user namespace where its containers could
// not be made: by then it would have a network and the kubelet no way out.
func (m *Manager) userNamespaces(cfg *runtimeapi.PodSandboxConfig, h Handler) error {
	const field = "linux.security_context.namespace_options.userns_options"
	if userNamespace(cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()) == nil {
		return nil
	}
	if err := m.deps.Spec.Host.NoUserNamespaces; err != nil {
		return fmt.Errorf("%s: pods cannot have user namespaces on this node: %w: %w", field, err, errdefs.ErrFailedPrecondition)
	}
	if !h.Spec.UserNamespaces {
		return fmt.Errorf("%s: runtime handler %q does not support user namespaces: %w", field, h.Spec.Name, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// abandon forgets a sandbox that was undone, or keeps it as not ready when it
// was not, so that the kubelet's stop and remove finish the work.
func (m *Manager) abandon(id string, cause error) error {
	var se *steps.Error
	if !errors.As(cause, &se) || se.Undo == nil {
		return m.forget(id)
	}
	_, err := m.deps.Store.Sandboxes.Update(id, func(s *store.Sandbox) error {
		s.State = store.SandboxNotReady
		return nil
	})
	return err
}

// forget deletes the record of a sandbox of which nothing is left.
func (m *Manager) forget(id string) error {
	if sb, ok := m.deps.Store.Sandboxes.Get(id); ok {
		m.release(sb.ProcessLabel)
	}
	return m.deps.Store.Sandboxes.Delete(id)
}

// building is one sandbox under construction.
type building struct {
	m     *Manager
	sb    *store.Sandbox // replaced by commit
	flags int

	addrs []netip.Addr
	pidns string
	// slot is the place in the warm pool that the namespaces come from; "" when they were made.
	slot string
}

// table is the construction of a sandbox. The record that says "creating" is
// written before and outlives a failed undo.
func (b *building) table() []steps.Step {
	m, id := b.m, b.sb.ID
	t := []steps.Step{
		{
			Name: "write files",
			Do:   b.writeFiles,
			Undo: func(context.Context) error {
				m.deps.Shims.Release(id)
				return m.Dir(id).remove()
			},
		},
		{
			Name: "make namespaces",
			Do:   b.makeNamespaces,
			Undo: b.dropNamespaces,
		},
	}
	if b.sb.NetworkUp {
		t = append(t, steps.Step{Name: "attach network", Do: b.attachNetwork, Undo: func(ctx context.Context) error {
			return m.detach(ctx, id)
		}})
	}
	if b.sb.Process {
		t = append(t, steps.Step{Name: "start process", Do: b.startProcess, Undo: func(ctx context.Context) error {
			return m.endProcess(ctx, b.sb)
		}})
	}
	return append(
		t,
		steps.Step{Name: "tell plugins", Do: b.tellPlugins, Undo: func(ctx context.Context) error {
			m.tell(ctx, nri.SandboxRemoved, b.sb)
			return nil
		}},
		steps.Step{Name: "commit", Do: b.commit},
	)
}

// writeFiles makes the sandbox's directory. Its shim, which has a socket there,
// is started beside what follows.
func (b *building) writeFiles(ctx context.Context) error {
	hostname, err := b.hostname()
	if err != nil {
		return err
	}
	if err := b.m.Dir(b.sb.ID).write(b.sb, hostname, b.m.cfg.ShmSize); err != nil {
		return err
	}
	if !b.sb.Process { // the process's task starts it
		b.m.deps.Shims.Prepare(ctx, b.sb.ID, b.sb.Handler)
	}
	return nil
}

// hostname is the pod's name, or the node's for pods on its network.
func (b *building) hostname() (string, error) {
	if h := b.sb.Config.M.GetHostname(); h != "" {
		return h, nil
	}
	h, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	return h, nil
}

func (b *building) makeNamespaces(context.Context) error {
	hostname, err := b.hostname()
	if err != nil {
		return err
	}
	user := userNamespace(b.sb.NamespaceOptions())
	if b.m.pool != nil && suits(b.sb, b.flags) {
		if b.slot = b.m.pool.claim(b.m.pins(b.sb.ID)); b.slot != "" {
			return inside(b.m.pins(b.sb.ID), unix.CLONE_NEWUTS, func() error { return setHostname(hostname) })
		}
	}
	return makeNamespaces(b.m.pins(b.sb.ID), b.flags, user, func() error {
		if b.flags&unix.CLONE_NEWUTS != 0 {
			if err := setHostname(hostname); err != nil {
				return err
			}
		}
		if b.flags&unix.CLONE_NEWNET != 0 {
			if err := raiseLoopback(); err != nil {
				return err
			}
		}
		if user != nil {
			if err := becomeOwner(user.Uids[0].GetHostId()); err != nil {
				return err
			}
		}
		return writeSysctls(b.m.sysctls(b.sb.Config.M, b.flags, user != nil))
	})
}

func setHostname(name string) error {
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name %q: %w", name, err)
	}
	return nil
}

// dropNamespaces also gives back what the network knows of a slot that was
// claimed and not attached; after a crash recoverPool does that.
func (b *building) dropNamespaces(ctx context.Context) error {
	var err error
	if b.slot != "" {
		err = b.m.pool.net.Detach(ctx, slotKey(b.slot))
	}
	return errors.Join(err, dropNamespaces(b.m.pins(b.sb.ID)))
}

// becomeOwner gives the calling thread, which is not used again, the user that
// is root in the pod's user namespace: only that one may write the sysctls of
// its IPC namespace, whatever capabilities others have.
func becomeOwner(uid uint32) error {
	keep := ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

// sysctls are the node's defaults and the pod's own, which win.
func (m *Manager) sysctls(cfg *runtimeapi.PodSandboxConfig, flags int, userns bool) map[string]string {
	all := map[string]string{}
	for n, v := range m.cfg.Sysctls {
		// A range of groups cannot name groups outside of a user namespace.
		if flags&unix.CLONE_NEWNET != 0 && (!userns || sysctlPath(n) != "net/ipv4/ping_group_range") {
			all[sysctlPath(n)] = v
		}
	}
	for n, v := range cfg.GetLinux().GetSysctls() {
		all[sysctlPath(n)] = v
	}
	return all
}

func (b *building) attachNetwork(ctx context.Context) error {
	req, err := networkRequest(b.sb)
	if err != nil {
		return err
	}
	res, err := b.m.deps.Network.Attach(ctx, req)
	if errors.Is(err, ipam.ErrExhausted) && b.m.pool != nil && b.m.pool.dropAll(ctx) {
		// What waits for a pod must not be what a pod waits for.
		res, err = b.m.deps.Network.Attach(ctx, req)
	}
	if err != nil {
		return err
	}
	for _, p := range res.Addrs {
		b.addrs = append(b.addrs, p.Addr())
	}
	return nil
}

// tellPlugins asks plugins for their consent to the finished sandbox.
func (b *building) tellPlugins(ctx context.Context) error {
	sb := *b.sb
	sb.Addrs = b.addrs
	return b.m.deps.Plugins.TellSandbox(ctx, nri.SandboxRun, &sb)
}

// tell tells plugins what has happened; that cannot fail any more.
func (m *Manager) tell(ctx context.Context, e nri.SandboxEvent, sb *store.Sandbox) {
	if err := m.deps.Plugins.TellSandbox(ctx, e, sb); err != nil {
		m.deps.Log.WarnContext(ctx, "plugin failed over what has happened to a sandbox", "sandbox", sb.ID, "err", err)
	}
}

func (b *building) commit(context.Context) (err error) {
	b.sb, err = b.m.deps.Store.Sandboxes.Update(b.sb.ID, func(s *store.Sandbox) error {
		s.State = store.SandboxReady
		s.Addrs = b.addrs
		s.Namespaces.PID = b.pidns
		return nil
	})
	return err
}
