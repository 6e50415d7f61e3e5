// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// ParamSize names an inline volume's size among its attributes.
const ParamSize = "size"

// ephemeralBytes is an inline volume's size when its attributes name none.
const ephemeralBytes = 100 << 20

// EphemeralRequest asks for an inline volume: made at its one publish, gone with
// its unpublish.
type EphemeralRequest struct {
	ID, Target string
	Capability Capability
	ReadOnly   bool
	// Attributes are the pod's volumeAttributes: size and the class parameters.
	Attributes map[string]string
	Pod        PodRef
}

// PublishEphemeral makes, stages and publishes an inline volume.
func (m *Manager) PublishEphemeral(ctx context.Context, req EphemeralRequest) error {
	if req.Capability.Block {
		return fmt.Errorf("%w: inline volumes are file systems, not block devices", ErrInvalid)
	}
	if !validID(req.ID) {
		return fmt.Errorf("%w: volume id %q", ErrInvalid, req.ID)
	}
	if err := m.makeEphemeral(ctx, req); err != nil {
		return err
	}
	staging := m.ephemeralStaging(req.ID)
	if err := makeTarget(staging, false); err != nil {
		return err
	}
	if err := m.Stage(ctx, StageRequest{ID: req.ID, Path: staging, Capability: req.Capability}); err != nil {
		return err
	}
	return m.Publish(ctx, PublishRequest{
		ID: req.ID, Staging: staging, Target: req.Target, Capability: req.Capability, ReadOnly: req.ReadOnly, Pod: req.Pod,
	})
}

// ephemeralStaging is where an inline volume is mounted: the kubelet gives none.
func (m *Manager) ephemeralStaging(id string) string {
	return filepath.Join(m.cfg.StateDir, "inline", id)
}

func (m *Manager) makeEphemeral(ctx context.Context, req EphemeralRequest) error {
	release, err := m.locks.lock(ctx, req.ID, "create inline volume")
	if err != nil {
		return err
	}
	defer release()
	if o := m.peek(req.ID); o != nil {
		if o.broken != nil {
			return o.broken
		}
		if o.rec.Pod == nil {
			return fmt.Errorf("%w: %s is not an inline volume", ErrExists, req.ID)
		}
		return nil
	}
	attrs := maps.Clone(req.Attributes)
	size, err := parseSize(attrs[ParamSize])
	if err != nil {
		return fmt.Errorf("%w: attribute %s: %w", ErrInvalid, ParamSize, err)
	}
	delete(attrs, ParamSize)
	if size == 0 {
		size = ephemeralBytes
	}
	mutable := map[string]string{}
	for _, k := range []string{ParamReadIOPS, ParamWriteIOPS, ParamReadBandwidth, ParamWriteBandwidth} {
		if v, ok := attrs[k]; ok {
			mutable[k] = v
			delete(attrs, k)
		}
	}
	pl, err := m.planCreate(CreateRequest{
		Name: req.ID, Required: size, Capabilities: []Capability{req.Capability}, Parameters: attrs, Mutable: mutable,
	})
	if err != nil {
		return err
	}
	if err := m.planSource(pl, CreateRequest{Required: size}); err != nil {
		return err
	}
	pl.rec.ID, pl.rec.Pod, pl.rec.Created = req.ID, &req.Pod, time.Now().UTC()
	return m.build(ctx, pl, "create inline volume")
}

// endEphemeral unmounts and destroys an inline volume after its unpublish; the
// volume's lock is held.
func (m *Manager) endEphemeral(ctx context.Context, o *object) error {
	staging := m.ephemeralStaging(o.rec.ID)
	if err := m.unmountOurs(ctx, o, staging, true); err != nil {
		return err
	}
	if err := mount.Clear(staging); err != nil {
		return m.spaceError(err)
	}
	return m.discard(ctx, o, "delete inline volume")
}
