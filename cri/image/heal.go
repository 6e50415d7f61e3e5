// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// labelUnsynced marks an image whose layers may not have reached the disk,
// with the boot in which they were unpacked. containerd does not sync what it
// unpacks, so a machine that loses its power has empty files in them.
const labelUnsynced = "nodeagent.dev/unsynced"

// Content is containerd's stored blobs and layers, for healing.
type Content interface {
	VerifyImage(ctx context.Context, target ocispec.Descriptor) ([]digest.Digest, error)
	DeleteContent(ctx context.Context, blobs ...digest.Digest) error
	RemoveLayers(ctx context.Context, snapshotter string, diffIDs []digest.Digest) error
	ContentRoot(ctx context.Context) (string, error)
}

// bootID names the running boot of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// unsynced takes a freshly pulled image to those that the next sync is for.
func (s *Service) unsynced(name string) {
	s.mu.Lock()
	s.dirty[name] = true
	s.mu.Unlock()
	select {
	case s.sync <- struct{}{}:
	default: // a sync that has not begun yet will do
	}
}

// syncLoop brings pulled images to the disk in the background and then takes
// their marks away.
func (s *Service) syncLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.sync:
		}
		s.mu.Lock()
		names := s.dirty
		s.dirty = map[string]bool{}
		s.mu.Unlock()
		if err := s.syncDisks(ctx); err != nil {
			s.log.WarnContext(ctx, "images are checked again after the next boot", "err", err)
			continue
		}
		for name := range names {
			if err := s.unmark(ctx, name); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "image is checked again after the next boot", "image", name, "err", err)
			}
		}
	}
}

// syncDisks waits until all that was written is on the disk.
func (s *Service) syncDisks(ctx context.Context) error {
	root, err := s.deps.Content.ContentRoot(ctx)
	if err != nil {
		return err
	}
	roots := []string{root}
	for _, name := range s.snapshotters() {
		root, err := s.deps.Snapshots.SnapshotterRoot(ctx, name)
		if err != nil {
			return err
		}
		roots = append(roots, root)
	}
	for _, root := range roots {
		if err := syncfs(root); err != nil {
			return err
		}
	}
	return nil
}

func syncfs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync file system: %w", err)
	}
	defer f.Close() //nolint:errcheck // read-only
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync file system of %s: %w", path, err)
	}
	return nil
}

// unmark takes the mark from a record that is still there.
func (s *Service) unmark(ctx context.Context, name string) error {
	rec, err := s.deps.Records.ImageRecord(ctx, name)
	if err != nil {
		return err
	}
	rec.Labels = map[string]string{labelUnsynced: ""}
	return s.deps.Records.PutImageRecord(ctx, rec)
}

// heal looks for images that were pulled shortly before the machine went down
// without a sync. Their layers are unpacked anew from blobs that verify; an
// image with a blob that does not is dropped, so that the kubelet fetches it
// again instead of starting broken containers for ever.
func (s *Service) heal(ctx context.Context) error {
	if !s.cfg.CheckContent {
		return nil
	}
	records, err := s.deps.Records.ImageRecords(ctx)
	if err != nil {
		return err
	}
	suspects := map[digest.Digest]containerd.ImageRecord{}
	for _, rec := range records {
		switch rec.Labels[labelUnsynced] {
		case "":
		case s.boot:
			s.unsynced(rec.Name)
		default:
			suspects[rec.Target.Digest] = rec
		}
	}
	if len(suspects) == 0 {
		return nil
	}
	s.log.WarnContext(ctx, "machine went down before images were on disk, checking them", "images", len(suspects))
	var errs []error
	var good []containerd.ImageRecord
	for _, rec := range suspects {
		ok, err := s.examine(ctx, rec, records)
		if ok {
			good = append(good, rec)
		}
		errs = append(errs, err)
	}
	// Layers are shared: all are removed before any is unpacked.
	for _, rec := range good {
		errs = append(errs, s.restore(ctx, rec))
	}
	return errors.Join(errs...)
}

// healing spaces the tries to heal what could not be healed, as while a
// container of the boot before holds the layers: each reads whole images.
type healing struct {
	due   time.Time
	pause time.Duration
}

func (h *healing) heal(ctx context.Context, s *Service, now time.Time) error {
	if now.Before(h.due) {
		return nil
	}
	err := s.heal(ctx)
	if err == nil {
		h.pause = 0
		return nil
	}
	h.pause = min(max(2*h.pause, resyncInterval), time.Hour)
	h.due = now.Add(h.pause)
	return err
}

// examine removes an image's layers, and the image when its blobs are bad;
// true when it can be unpacked again.
func (s *Service) examine(ctx context.Context, rec containerd.ImageRecord, all []containerd.ImageRecord) (bool, error) {
	bad, err := s.deps.Content.VerifyImage(ctx, rec.Target)
	if err != nil {
		return false, err
	}
	if info, err := s.deps.Records.InspectImage(ctx, rec.Target); err == nil {
		for _, name := range s.snapshotters() {
			if err := s.deps.Content.RemoveLayers(ctx, name, info.Config.RootFS.DiffIDs); err != nil {
				return false, fmt.Errorf("image %s: %w", rec.Name, err)
			}
		}
	}
	if len(bad) == 0 {
		return true, nil
	}
	s.log.WarnContext(ctx, "image is damaged and must be pulled again", "image", rec.Name, "blobs", bad)
	errs := []error{s.deps.Content.DeleteContent(ctx, bad...)}
	for _, other := range all {
		if other.Target.Digest == rec.Target.Digest && other.Name != rec.Name {
			errs = append(errs, s.deps.Records.DeleteImageRecord(ctx, other.Name, false))
		}
	}
	// The marked record goes last, for the mark is what a crash here needs; and
	// with a collection, for until then a pull would find the bad blobs again.
	errs = append(errs, s.deps.Records.DeleteImageRecord(ctx, rec.Name, true))
	return false, errors.Join(errs...)
}

// restore unpacks an image again.
func (s *Service) restore(ctx context.Context, rec containerd.ImageRecord) error {
	if err := s.deps.Snapshots.UnpackImage(ctx, rec, s.deps.Snapshotter); err != nil {
		return err
	}
	rec.Labels = map[string]string{labelUnsynced: s.boot}
	if err := s.deps.Records.PutImageRecord(ctx, rec); err != nil {
		return err
	}
	s.unsynced(rec.Name)
	return nil
}
