// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strconv"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// AccessMode is who may use a volume at once.
type AccessMode string

// Access modes, as CSI names them. A volume of this driver is on one node, so
// the multi-node writers are refused; the multi-node reader is served to the
// pods of this node.
const (
	SingleWriter     AccessMode = "SINGLE_NODE_WRITER"
	SingleReader     AccessMode = "SINGLE_NODE_READER_ONLY"
	SinglePodWriter  AccessMode = "SINGLE_NODE_SINGLE_WRITER"
	NodePodsWriter   AccessMode = "SINGLE_NODE_MULTI_WRITER"
	MultiReader      AccessMode = "MULTI_NODE_READER_ONLY"
	MultiNodeWriter  AccessMode = "MULTI_NODE_SINGLE_WRITER"
	MultiNodeWriters AccessMode = "MULTI_NODE_MULTI_WRITER"
)

// readsOnly says whether the mode never writes.
func (a AccessMode) readsOnly() bool { return a == SingleReader || a == MultiReader }

func (a AccessMode) supported() error {
	switch a {
	case SingleWriter, SingleReader, SinglePodWriter, NodePodsWriter, MultiReader:
		return nil
	case MultiNodeWriter, MultiNodeWriters:
		return fmt.Errorf("%w: access mode %s: a volume of this driver is on one node only", ErrInvalid, a)
	default:
		return fmt.Errorf("%w: access mode %q is unknown", ErrInvalid, a)
	}
}

// Capability is how a volume is going to be used.
type Capability struct {
	Block bool
	// FSType of a mounted volume; empty takes the class's, or ext4.
	FSType string
	// Flags are mount options as in fstab. They may hold secrets: never log them.
	Flags []string
	// Group is a gid, in decimal, that the volume's contents are given to; empty
	// leaves them as they are.
	Group string
	Mode  AccessMode
}

// check refuses what no volume of this driver can be.
func (c Capability) check() error {
	if err := c.Mode.supported(); err != nil {
		return err
	}
	if c.Block {
		return nil
	}
	if c.FSType != "" && !knownFS(c.FSType) && !nativeFS(c.FSType) {
		return fmt.Errorf("%w: file system %q is none of ext4, ext3, ext2, xfs, btrfs", ErrInvalid, c.FSType)
	}
	if _, err := mount.ParseOptions(c.Flags); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if c.Group != "" {
		_, err := c.gid()
		return err
	}
	return nil
}

func (c Capability) gid() (int, error) {
	n, err := strconv.ParseUint(c.Group, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%w: volume mount group %q is not a group id", ErrInvalid, c.Group)
	}
	return int(n), nil
}

// nativeFS are types that a backend brings itself.
func nativeFS(t string) bool { return t == "tmpfs" || t == "erofs" || t == "squashfs" }

// fits says whether a pool's volumes can be used this way.
func (c Capability) fits(f backend.Features) error {
	switch {
	case c.Block && !f.Block:
		return fmt.Errorf("%w: the pool has no raw block volumes", ErrInvalid)
	case f.ReadOnly && !c.Mode.readsOnly():
		return fmt.Errorf("%w: the pool has read-only volumes, access mode %s writes", ErrInvalid, c.Mode)
	case !c.Block && !f.Mount:
		return fmt.Errorf("%w: the pool has no file-system volumes", ErrInvalid)
	}
	return nil
}

// CheckCapabilities says why the volume cannot be used in all of these ways.
func (m *Manager) CheckCapabilities(id string, caps []Capability) error {
	o, err := m.find(KindVolume, id)
	if err != nil {
		return err
	}
	return m.suits(o, caps)
}

// suits is CheckCapabilities on an object.
func (m *Manager) suits(o *object, caps []Capability) error {
	f, err := o.pool.ready()
	if err != nil {
		return err
	}
	for _, c := range caps {
		if err := c.check(); err != nil {
			return err
		}
		if err := c.fits(f); err != nil {
			return err
		}
		if !c.Block && o.rec.Format == FormatDone && c.FSType != "" && c.FSType != o.rec.FSType {
			return fmt.Errorf("%w: volume %s carries %s, not %s", ErrInvalid, o.rec.ID, o.rec.FSType, c.FSType)
		}
	}
	return nil
}
