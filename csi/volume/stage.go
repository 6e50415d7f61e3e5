// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// StageRequest asks to make a volume ready at a path of the kubelet's.
type StageRequest struct {
	ID, Path   string
	Capability Capability
}

func (r StageRequest) args() stageArgs {
	c := r.Capability
	return stageArgs{Block: c.Block, FSType: c.FSType, Flags: c.Flags, Reader: c.Mode.readsOnly()}
}

// Stage attaches the volume and, unless it is used as a raw block device, mounts
// its file system at the path. A fresh volume is formatted here, once.
func (m *Manager) Stage(ctx context.Context, req StageRequest) (retErr error) {
	release, err := m.locks.lock(ctx, req.ID, "stage volume")
	if err != nil {
		return err
	}
	defer release()
	defer func() { m.note(req.ID, "Stage", retErr) }()
	o, err := m.find(KindVolume, req.ID)
	if err != nil {
		return err
	}
	if err := m.suits(o, []Capability{req.Capability}); err != nil {
		return fmt.Errorf("%w: %w", ErrPrecondition, err)
	}
	if err := checkDir(req.Path); err != nil {
		return err
	}
	if err := o.pool.check(); err != nil {
		return err
	}
	st, err := m.state.get(req.ID)
	if err != nil {
		return err
	}
	if done, err := m.staged(ctx, o, st, req); done || err != nil {
		return err
	}
	return m.stage(ctx, o, req)
}

// checkDir refuses paths that are not plain directories.
func checkDir(path string) error {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return fmt.Errorf("%w: path %q is not absolute and clean", ErrInvalid, path)
	}
	at, err := mount.At(path)
	switch {
	case err != nil:
		return err
	case at.Link:
		return fmt.Errorf("%w: path %s is a symbolic link", ErrInvalid, path)
	case !at.Exists:
		return fmt.Errorf("%w: path %s does not exist", ErrPrecondition, path)
	case !at.Dir:
		return fmt.Errorf("%w: path %s is not a directory", ErrInvalid, path)
	}
	return nil
}

// staged says whether the volume already is at the path, in the same way. An
// entry without its mount is from before a reboot and is staged anew.
func (m *Manager) staged(ctx context.Context, o *object, st *attachState, req StageRequest) (bool, error) {
	args, known := st.Staged[req.Path]
	for path, other := range st.Staged {
		if other.Block != req.Capability.Block && m.isStaged(ctx, o, path, other) {
			return false, fmt.Errorf("%w: volume %s is staged at %s in the other access type", ErrExists, o.rec.ID, path)
		}
	}
	if req.Capability.Block {
		if known && args.Block && m.isStaged(ctx, o, req.Path, args) {
			return true, nil
		}
		return false, nil
	}
	at, err := mount.At(req.Path)
	if err != nil {
		return false, err
	}
	if !at.Mounted {
		return false, nil
	}
	if at.Corrupt {
		return false, mount.Unmount(req.Path)
	}
	ours, err := m.ours(ctx, o, req.Path, at)
	switch {
	case err != nil:
		return false, err
	case !ours:
		return false, fmt.Errorf("%w: something else is mounted at %s", ErrPrecondition, req.Path)
	case known && !args.equal(req.args()):
		return false, fmt.Errorf("%w: volume %s is staged at %s with another capability", ErrExists, o.rec.ID, req.Path)
	}
	// Staged, and perhaps forgotten by the state file: write it down again.
	return true, m.state.update(o.rec.ID, func(s *attachState) { s.Staged[req.Path] = req.args() })
}

// isStaged looks whether an entry is still true.
func (m *Manager) isStaged(ctx context.Context, o *object, path string, a stageArgs) bool {
	if a.Block {
		atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec))
		return err == nil && len(atts) > 0
	}
	at, err := mount.At(path)
	if err != nil || !at.Mounted {
		return false
	}
	ours, err := m.ours(ctx, o, path, at)
	return err == nil && ours
}

// ours says whether what is mounted at path is this volume.
func (m *Manager) ours(ctx context.Context, o *object, path string, at mount.Point) (bool, error) {
	if same, err := m.recognised(o, at); same || err != nil {
		return same, err
	}
	atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec))
	if err != nil {
		return false, m.spaceError(err)
	}
	for _, a := range atts {
		switch {
		case a.Kind == backend.Device && at.Device:
			if a.Rdev == at.Rdev {
				return true, nil
			}
		case a.Kind == backend.Device && a.Rdev == at.Dev:
			return true, nil
		case a.Kind == backend.Device && o.rec.FSType != "btrfs":
		default:
			same, err := sameMount(path, a)
			if err != nil || same {
				return same, err
			}
		}
	}
	return false, nil
}

// recognised says whether the backend knows the device by its number.
func (m *Manager) recognised(o *object, at mount.Point) (bool, error) {
	r, ok := o.pool.be.(backend.Recogniser)
	if !ok {
		return false, nil
	}
	rdev := at.Dev
	if at.Device {
		rdev = at.Rdev
	}
	return r.Is(m.object(o.pool, o.rec), rdev)
}

// sameMount compares by the mount table where device numbers do not tell: btrfs
// has anonymous ones, directories share their pool's.
func sameMount(path string, a *backend.Attachment) (bool, error) {
	entries, err := mount.Table(path)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Point != path {
			continue
		}
		switch a.Kind {
		case backend.Device, backend.Filesystem:
			if e.Source == a.Path {
				return true, nil
			}
		case backend.Directory:
			want, err := mount.StatFileID(a.Path)
			if err != nil {
				return false, err
			}
			have, err := mount.StatFileID(path)
			if err != nil {
				return false, err
			}
			if want == have {
				return true, nil
			}
		}
	}
	return false, nil
}

func (m *Manager) stage(ctx context.Context, o *object, req StageRequest) error {
	var att *backend.Attachment
	defer func() { att.Release() }()
	obj := m.object(o.pool, o.rec)
	return m.run(ctx, req.ID, "stage volume", []step{
		{name: "record intent", do: func(context.Context) error {
			return m.state.update(req.ID, func(s *attachState) { s.Staged[req.Path] = req.args() })
		}, undo: func(context.Context) error {
			return m.state.update(req.ID, func(s *attachState) { delete(s.Staged, req.Path) })
		}},
		{name: "attach", do: func(ctx context.Context) (err error) {
			att, err = o.pool.be.Attach(ctx, obj, backend.AttachOptions{Transient: !req.Capability.Block})
			m.io.follow(req.ID, att)
			return m.spaceError(err)
		}, undo: func(ctx context.Context) error {
			att.Release()
			return m.detachUnused(ctx, o)
		}},
		{name: "prepare contents", do: func(ctx context.Context) error {
			defer m.turns.take(ctx)()
			return m.prepare(ctx, o, req, att)
		}},
		{
			name: "mount", do: func(context.Context) error { return m.mountStaged(m.peek(req.ID), req, att) },
			undo: func(context.Context) error {
				if req.Capability.Block {
					return nil
				}
				return mount.Unmount(req.Path)
			},
		},
		{name: "grow file system", do: func(ctx context.Context) error {
			return m.growStaged(ctx, m.peek(req.ID), req)
		}},
	})
}

// detachUnused frees devices when nothing is staged any more.
func (m *Manager) detachUnused(ctx context.Context, o *object) error {
	st, err := m.state.get(o.rec.ID)
	if err != nil {
		return err
	}
	for path, a := range st.Staged {
		if !a.Block && m.isStaged(ctx, o, path, a) {
			return nil
		}
	}
	return m.spaceError(o.pool.be.Detach(ctx, m.object(o.pool, o.rec)))
}

// prepare makes sure of what the payload carries before anybody uses it. It
// never formats what might hold data: only a fresh payload, or one whose mkfs
// was interrupted and which therefore never was mounted.
func (m *Manager) prepare(ctx context.Context, o *object, req StageRequest, att *backend.Attachment) error {
	if att.Kind != backend.Device {
		return nil
	}
	rec := o.rec
	if req.Capability.Block {
		if rec.Format == FormatNone {
			rec.Format = FormatRaw
			return m.save(o.pool, rec)
		}
		return nil
	}
	switch rec.Format {
	case FormatNone, FormatBegun:
		return m.format(ctx, o, req, att)
	case FormatRaw:
		return m.adopt(o, req, att)
	case FormatDone:
	case FormatNative:
		return nil
	}
	found, err := mount.Detect(att.Path)
	if err != nil {
		return err
	}
	if found != rec.FSType {
		return fmt.Errorf("%w: volume %s should carry %s, its device shows %q; not formatted again", ErrDamaged, rec.ID, rec.FSType, found)
	}
	st, err := m.state.get(rec.ID)
	if err != nil {
		return err
	}
	if _, mounted := m.mountedAt(ctx, o, st); mounted {
		return nil // a second staging path of a live file system: nothing to check
	}
	switch err := mount.CheckFS(ctx, att.Path, rec.FSType); {
	case errors.Is(err, mount.ErrCorrupt):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, mount.ErrNotSupported):
		// No checker installed: the kernel replays the journal by itself.
		m.log.WarnContext(ctx, "file system not checked before mounting", "volume", rec.ID, "err", err)
	case err != nil:
		return err
	}
	return m.resizeOffline(ctx, o, att)
}

func (m *Manager) format(ctx context.Context, o *object, req StageRequest, att *backend.Attachment) error {
	rec := o.rec
	if rec.FSType == "" {
		rec.FSType = req.Capability.FSType
	}
	if rec.FSType == "" {
		rec.FSType = "ext4"
	}
	if rec.Format == FormatNone {
		found, err := mount.Detect(att.Path)
		if err != nil {
			return err
		}
		if found != mount.FormatBlank {
			return fmt.Errorf("%w: volume %s was never formatted by us, but its device shows %q; not formatted", ErrDamaged, rec.ID, found)
		}
	}
	rec.Format = FormatBegun
	if err := m.save(o.pool, rec); err != nil {
		return err
	}
	if m.deps.Checkpoint != nil {
		if err := m.deps.Checkpoint("stage volume", "formatting"); err != nil {
			return err
		}
	}
	if err := mount.MakeFS(ctx, att.Path, mount.FormatOptions{Type: rec.FSType}); err != nil {
		return err
	}
	rec.Format = FormatDone
	return m.save(o.pool, rec)
}

// adopt takes over a file system that somebody made on the raw device.
func (m *Manager) adopt(o *object, req StageRequest, att *backend.Attachment) error {
	found, err := mount.Detect(att.Path)
	if err != nil {
		return err
	}
	want := req.Capability.FSType
	if want == "" {
		want = o.rec.FSType
	}
	if !knownFS(found) || (want != "" && want != found) {
		return fmt.Errorf("%w: volume %s was used as a raw block device and shows %q, not a file system %q; not formatted", ErrPrecondition, o.rec.ID, found, want)
	}
	rec := o.rec
	rec.Format, rec.FSType, rec.Resize = FormatDone, found, true
	return m.save(o.pool, rec)
}

// mountStaged mounts the volume's file system at the staging path and, the
// first time, gives its root the owner and mode of the class.
func (m *Manager) mountStaged(o *object, req StageRequest, att *backend.Attachment) error {
	if req.Capability.Block {
		return nil
	}
	var err error
	switch att.Kind {
	case backend.Device:
		opts := append(append([]string{}, att.Options...), req.Capability.Flags...)
		if o.rec.FSType == "xfs" {
			opts = append(opts, "nouuid") // a clone has its source's UUID
		}
		err = mount.Mount(mount.FS{Type: cmp.Or(att.FSType, o.rec.FSType), Source: att.Path, Options: opts}, req.Path)
	case backend.Filesystem:
		opts := append(append([]string{}, att.Options...), req.Capability.Flags...)
		err = mount.Mount(mount.FS{Type: att.FSType, Source: att.Path, Options: opts}, req.Path)
	case backend.Directory:
		var o mount.Options
		if o, err = mount.ParseOptions(req.Capability.Flags); err == nil {
			err = mount.Bind(att.Path, req.Path, mount.BindOptions{ReadOnly: o.ReadOnly, Attr: o.Attr})
		}
	}
	if errors.Is(err, mount.ErrOption) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err != nil {
		return err
	}
	return m.own(o, req, att.Fresh)
}

// ownedName marks, inside the volume's directory, that the root's ownership was
// set; later the volume's users decide.
const ownedName = "owned"

func (m *Manager) own(o *object, req StageRequest, fresh bool) error {
	gid := o.rec.Params.GID
	if req.Capability.Group != "" {
		n, err := req.Capability.gid()
		if err != nil {
			return err
		}
		gid = n
	}
	f, err := o.pool.ready()
	if err != nil || f.ReadOnly {
		return err
	}
	flag := filepath.Join(o.pool.dir(KindVolume, o.rec.ID), ownedName)
	if _, err := os.Stat(flag); !fresh && (err == nil || o.rec.Source != nil) {
		return nil
	}
	mode := o.rec.Params.rootMode()
	if req.Capability.Group != "" {
		mode |= 0o770 | os.ModeSetgid
	}
	if err := os.Chown(req.Path, o.rec.Params.UID, gid); err != nil {
		return fmt.Errorf("own volume root: %w", err)
	}
	if err := os.Chmod(req.Path, mode); err != nil {
		return fmt.Errorf("own volume root: %w", err)
	}
	return os.WriteFile(flag, nil, 0o600)
}

// growStaged makes the freshly mounted file system as large as its device.
func (m *Manager) growStaged(ctx context.Context, o *object, req StageRequest) error {
	if req.Capability.Block || !o.rec.Resize || o.rec.Format != FormatDone {
		return nil
	}
	if err := o.pool.be.Refresh(ctx, m.object(o.pool, o.rec)); err != nil {
		return err
	}
	if err := mount.GrowFS(req.Path, o.rec.FSType, o.rec.Bytes); err != nil {
		if errors.Is(err, mount.ErrOffline) {
			return nil // a second staging path of a live ext file system; the next first one grows it
		}
		return err
	}
	return m.resized(o)
}

// mountedAt returns a staging path at which the volume's file system really is.
func (m *Manager) mountedAt(ctx context.Context, o *object, st *attachState) (string, bool) {
	for _, path := range st.stagePaths() {
		if a := st.Staged[path]; !a.Block && m.isStaged(ctx, o, path, a) {
			return path, true
		}
	}
	for _, path := range st.targetPaths() {
		if a := st.Targets[path]; !a.Block && !a.ReadOnly && m.isStaged(ctx, o, path, stageArgs{}) {
			return path, true
		}
	}
	return "", false
}
