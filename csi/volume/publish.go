// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// PublishRequest asks to give a staged volume to a pod.
type PublishRequest struct {
	ID, Staging, Target string
	Capability          Capability
	ReadOnly            bool
	// Pod, when known, is who gets it: by its uid, the cgroup with the volume's limits.
	Pod PodRef
}

func (r PublishRequest) args() targetArgs {
	return targetArgs{
		Staging: r.Staging, Block: r.Capability.Block, ReadOnly: r.ReadOnly || r.Capability.Mode.readsOnly(),
		Mode: r.Capability.Mode, Flags: r.Capability.Flags, PodUID: r.Pod.UID, Pod: r.Pod.String(),
	}
}

// Publish makes the volume appear at the target path, which it creates.
func (m *Manager) Publish(ctx context.Context, req PublishRequest) (retErr error) {
	release, err := m.locks.lock(ctx, req.ID, "publish volume")
	if err != nil {
		return err
	}
	defer release()
	defer func() { m.note(req.ID, "Publish", retErr) }()
	o, err := m.find(KindVolume, req.ID)
	if err != nil {
		return err
	}
	if err := m.suits(o, []Capability{req.Capability}); err != nil {
		return fmt.Errorf("%w: %w", ErrPrecondition, err)
	}
	st, err := m.state.get(req.ID)
	if err != nil {
		return err
	}
	if err := m.stands(ctx, o, st, req); err != nil {
		return err
	}
	if done, err := m.published(ctx, o, st, req); done || err != nil {
		return err
	}
	if err := m.mayJoin(o, st, req); err != nil {
		return err
	}
	return m.publish(ctx, o, req)
}

// stands checks that the staging is real: after a reboot the kubelet may ask to
// publish what only its own records say is staged.
func (m *Manager) stands(ctx context.Context, o *object, st *attachState, req PublishRequest) error {
	if req.Staging == "" {
		return fmt.Errorf("%w: staging path is missing", ErrPrecondition)
	}
	if !filepath.IsAbs(req.Target) || filepath.Clean(req.Target) != req.Target || req.Target == "/" {
		return fmt.Errorf("%w: target path %q is not absolute and clean", ErrInvalid, req.Target)
	}
	args, known := st.Staged[req.Staging]
	if known && args.Block != req.Capability.Block {
		return fmt.Errorf("%w: volume %s is staged in the other access type", ErrPrecondition, req.ID)
	}
	args.Block = req.Capability.Block
	if !m.isStaged(ctx, o, req.Staging, args) || (req.Capability.Block && !known) {
		return fmt.Errorf("%w: volume %s is not staged at %s", ErrPrecondition, req.ID, req.Staging)
	}
	return nil
}

// published says whether the target already is what is asked for.
func (m *Manager) published(ctx context.Context, o *object, st *attachState, req PublishRequest) (bool, error) {
	at, err := mount.At(req.Target)
	if err != nil {
		return false, err
	}
	if at.Link {
		return false, fmt.Errorf("%w: target path %s is a symbolic link", ErrInvalid, req.Target)
	}
	if at.Corrupt {
		return false, mount.Unmount(req.Target)
	}
	if !at.Mounted {
		return false, nil
	}
	ours, err := m.ours(ctx, o, req.Target, at)
	if err != nil {
		return false, err
	}
	if !ours {
		return false, fmt.Errorf("%w: something else is mounted at %s", ErrPrecondition, req.Target)
	}
	want := req.args()
	args, known := st.Targets[req.Target]
	if !known {
		args = want
		args.ReadOnly = at.ReadOnly && !req.Capability.Block || want.ReadOnly && req.Capability.Block
	}
	if !args.equal(want) {
		return false, fmt.Errorf("%w: volume %s is published at %s in another way", ErrExists, req.ID, req.Target)
	}
	if known && args.sameUser(want) {
		return true, nil
	}
	return true, m.state.update(req.ID, func(s *attachState) { s.Targets[req.Target] = want })
}

// mayJoin applies the table of second publishes: a single-pod writer suffers
// nobody beside it.
func (m *Manager) mayJoin(o *object, st *attachState, req PublishRequest) error {
	for path, t := range st.Targets {
		if path == req.Target {
			continue
		}
		at, err := mount.At(path)
		if err != nil {
			return err
		}
		if !at.Mounted {
			continue
		}
		if t.Mode == SinglePodWriter || req.Capability.Mode == SinglePodWriter {
			return fmt.Errorf("%w: volume %s is published at %s, and %s allows one pod only", ErrPrecondition, o.rec.ID, path, SinglePodWriter)
		}
	}
	return nil
}

func (m *Manager) publish(ctx context.Context, o *object, req PublishRequest) error {
	var source string
	return m.run(ctx, req.ID, "publish volume", []step{
		{name: "record intent", do: func(context.Context) error {
			return m.state.update(req.ID, func(s *attachState) { s.Targets[req.Target] = req.args() })
		}, undo: func(context.Context) error {
			return m.state.update(req.ID, func(s *attachState) { delete(s.Targets, req.Target) })
		}},
		{name: "find source", do: func(ctx context.Context) (err error) {
			source, err = m.publishSource(ctx, o, req)
			return err
		}},
		{
			name: "make target", do: func(context.Context) error { return makeTarget(req.Target, req.Capability.Block) },
			undo: func(context.Context) error { return mount.Clear(req.Target) },
		},
		{name: "give to group", do: func(ctx context.Context) error { return m.giveGroup(ctx, o, req) }},
		{name: "bind", do: func(context.Context) error {
			flags, err := mount.ParseOptions(req.Capability.Flags)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrInvalid, err)
			}
			return mount.Bind(source, req.Target, mount.BindOptions{ReadOnly: req.args().ReadOnly || flags.ReadOnly, Attr: flags.Attr})
		}},
		{name: "limit", do: func(ctx context.Context) error {
			m.applyLimits(ctx, o)
			return nil
		}},
	})
}

// giveGroup does for a pod's group what the kubelet otherwise does: the volume's
// contents become the group's, unless the volume's root says that they are.
func (m *Manager) giveGroup(ctx context.Context, o *object, req PublishRequest) error {
	if req.Capability.Block || req.Capability.Group == "" || req.args().ReadOnly {
		return nil
	}
	gid, err := req.Capability.gid()
	if err != nil {
		return err
	}
	at, err := mount.At(req.Staging)
	if err != nil {
		return err
	}
	if f, err := o.pool.ready(); err != nil || f.ReadOnly || at.ReadOnly {
		return err
	}
	return m.spaceError(mount.GiveGroup(ctx, req.Staging, gid))
}

// publishSource is the staged directory, or the device: a second, read-only one
// for readers of a raw block volume, because a read-only bind of a device node
// does not stop writes.
func (m *Manager) publishSource(ctx context.Context, o *object, req PublishRequest) (string, error) {
	if !req.Capability.Block {
		return req.Staging, nil
	}
	att, err := o.pool.be.Attach(ctx, m.object(o.pool, o.rec), backend.AttachOptions{ReadOnly: req.args().ReadOnly})
	if err != nil {
		return "", m.spaceError(err)
	}
	att.Release()
	return att.Path, nil
}

func makeTarget(path string, block bool) error {
	at, err := mount.At(path)
	if err != nil {
		return err
	}
	if at.Exists {
		if at.Dir == block {
			return fmt.Errorf("%w: target path %s exists and is of the wrong kind", ErrPrecondition, path)
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	if !block {
		if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make target: %w", err)
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	return f.Close()
}

// inlinePrefix begins the ids that the kubelet makes for inline volumes.
const inlinePrefix = "csi-"

// Unpublish takes the volume from the target and removes the path; what is not
// there is success. An inline volume's data goes with it.
func (m *Manager) Unpublish(ctx context.Context, id, target string) error {
	release, err := m.locks.lock(ctx, id, "unpublish volume")
	if err != nil {
		return err
	}
	defer release()
	o, found := m.find(KindVolume, id)
	st, err := m.state.get(id)
	if err != nil {
		return err
	}
	_, known := st.Targets[target]
	switch {
	case known, found == nil:
		// Also when the pool is away: the pod must be able to go.
	case errors.Is(found, ErrNotFound), errors.Is(found, ErrDamaged):
		return m.foreignTarget(id, target)
	default:
		return found
	}
	if err := m.unmountOurs(ctx, o, target, known); err != nil {
		return err
	}
	if err := mount.Clear(target); err != nil {
		return m.spaceError(err)
	}
	if err := m.state.update(id, func(s *attachState) { delete(s.Targets, target) }); err != nil {
		return err
	}
	if o == nil {
		if errors.Is(found, ErrUnavailable) && strings.HasPrefix(id, inlinePrefix) {
			return found // its data has to go as well, when the pool is back
		}
		return nil
	}
	m.applyLimits(ctx, o)
	if o.rec.Pod != nil {
		return m.endEphemeral(ctx, o)
	}
	return nil
}

// foreignTarget answers for a volume that we do not know: nothing of ours can be
// at the path, so nothing is touched, and an empty path is success.
func (m *Manager) foreignTarget(id, target string) error {
	at, err := mount.At(target)
	if err != nil {
		return err
	}
	if at.Mounted && !at.Corrupt {
		return fmt.Errorf("volume %q: %w; what is mounted at %s is left alone", id, ErrNotFound, target)
	}
	return nil
}
