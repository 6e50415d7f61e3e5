// SPDX-License-Identifier: Apache-2.0

// Package backend says what a storage backend is: something that keeps payloads
// (the bytes of a volume or snapshot) in a pool, durably and with a hard size.
//
// A backend knows nothing of names, intents, locks, publishing or CSI: the
// volume package does all that once for every backend, calls one verb at a time
// per object, and may call any verb again after a crash. Verbs are therefore
// idempotent, and Create has its payload's bytes on stable storage when it returns;
// the names in the object's directory are made durable by the caller.
package backend

import (
	"context"
	"errors"
	"os"
)

// Sentinels of every backend.
var (
	// ErrNoSpace: the pool cannot hold it.
	ErrNoSpace = errors.New("not enough space in the pool")
	// ErrNotSupported: this backend, or this kernel, cannot do it; the text says why.
	ErrNotSupported = errors.New("not supported by the storage backend")
	// ErrMissing: the payload is not there (lost, or removed behind our back).
	ErrMissing = errors.New("volume data is missing")
	// ErrBusy: the payload is still in use.
	ErrBusy = errors.New("volume data is in use")
	// ErrDamaged: the payload is not what was promised (shorter, other type).
	ErrDamaged = errors.New("volume data is damaged")
)

// Object names one payload.
type Object struct {
	// ID is the volume's or snapshot's id, for names that people read.
	ID string
	// Dir is the object's directory in the pool; file-like payloads live in it.
	Dir string
	// Handle is unique per creation: a payload outside Dir (a logical volume, a
	// disk's label) is named by it, so that a dying namesake is never met.
	Handle string
	// Bytes is the size promised.
	Bytes int64
	// Thin says that space is taken when written, not when promised.
	Thin bool
	// Options are the class's backend parameters.
	Options map[string]string
}

// Kind says what Attach offers.
type Kind int

// The kinds of attachment.
const (
	// Device is a block device: it can be published raw or carry a file system.
	Device Kind = iota + 1
	// Directory is a tree to be bound.
	Directory
	// Filesystem is mounted straight from FSType, Path and Options, without a device.
	Filesystem
)

// Attachment is a payload made visible on this node.
type Attachment struct {
	Kind    Kind
	Path    string   // device node, directory, or mount source
	Rdev    uint64   // device number, for Device
	FSType  string   // for Filesystem, and for a Device whose contents the backend knows
	Options []string // mount options that the payload needs
	// Fresh says that the root has no owner yet although the volume was used before:
	// the contents died with the boot.
	Fresh bool
	// Hold keeps the attachment alive until it is mounted; release it with
	// Release. May be nil.
	Hold interface{ Close() error }
}

// Release drops the hold; what is mounted by then stays.
func (a *Attachment) Release() {
	if a != nil && a.Hold != nil {
		_ = a.Hold.Close()
		a.Hold = nil
	}
}

// AttachOptions say what the attachment is for.
type AttachOptions struct {
	// ReadOnly asks for a device that itself refuses writes.
	ReadOnly bool
	// Transient says a mount follows at once: the kernel may free the device with
	// its last user. A raw block volume needs one that stays.
	Transient bool
}

// Features is what a probe found the backend able to do on this pool.
type Features struct {
	HardLimit  bool // writes beyond Bytes fail
	Reserve    bool // space can be taken when promised
	Block      bool // raw block volumes
	Mount      bool // file-system volumes
	Snapshots  bool
	Instant    bool // snapshots and clones share blocks and take no time
	Delta      bool // changed-block metadata
	OnlineGrow bool
	// OwnSuperblock: each volume is a file system of its own, so that freeze and
	// SELinux mount contexts work per volume.
	OwnSuperblock bool
	DirectIO      bool
	ReadOnly      bool // volumes are read-only by nature (images)
	MinBytes      int64
	Notes         []string // what could not be had, and why
}

// Space is what the pool can take now.
type Space struct {
	Total int64
	Free  int64
	// Largest is the largest single object; 0 means Free.
	Largest  int64
	ReadOnly bool
}

// Usage is what an object costs.
type Usage struct {
	// Allocated is what it occupies now (shared blocks counted).
	Allocated int64
	// Debt is what it may still ask of the pool: promised and not yet taken.
	Debt int64
	// Shared is what of Allocated others have, too, so that a write has to copy.
	Shared int64
}

// Store keeps payloads.
type Store interface {
	// Probe looks at the pool and returns what works there.
	Probe(ctx context.Context) (Features, error)
	// Space measures the pool.
	Space(ctx context.Context) (Space, error)
	// Create makes obj, durable on return; from (may be nil) is an object of the
	// same pool whose contents it starts with, and then obj is at least as large.
	Create(ctx context.Context, obj Object, from *Object) error
	// Destroy removes obj; what is not there is success.
	Destroy(ctx context.Context, obj Object) error
	// Grow makes obj obj.Bytes long; what is longer already is success.
	Grow(ctx context.Context, obj Object) error
	// Usage measures obj; thorough also follows shared blocks, which costs time
	// in proportion to fragments.
	Usage(ctx context.Context, obj Object, thorough bool) (Usage, error)
}

// Attacher makes payloads visible.
type Attacher interface {
	// Attach is idempotent: an attachment that stands is returned again.
	Attach(ctx context.Context, obj Object, o AttachOptions) (*Attachment, error)
	// Attached returns the attachments that stand, with no hold.
	Attached(ctx context.Context, obj Object) ([]*Attachment, error)
	// Refresh makes attachments see a grown payload.
	Refresh(ctx context.Context, obj Object) error
	// Detach removes every attachment; ErrBusy when somebody still holds one.
	Detach(ctx context.Context, obj Object) error
	// Check looks at an object's health without changing anything.
	Check(ctx context.Context, obj Object) error
}

// Backend is what each kind of storage implements.
type Backend interface {
	Store
	Attacher
}

// Snapshotter is implemented by backends with snapshots.
type Snapshotter interface {
	// Snapshot makes dst a read-only image of src at one moment, durable on return.
	Snapshot(ctx context.Context, src, dst Object) error
}

// Range is a piece of a volume's bytes.
type Range struct{ Offset, Length int64 }

// Recogniser is a backend that knows its device by the number, without a look at all
// devices of the machine.
type Recogniser interface {
	// Is says whether the device is one of the object's; false also when it cannot tell.
	Is(obj Object, rdev uint64) (bool, error)
}

// Sharer is implemented by backends whose objects may have blocks in common.
type Sharer interface {
	// Blocks yields where obj's data lies, on one line of addresses for the whole
	// pool (-1: it has no address), and whether something else has it, too.
	Blocks(ctx context.Context, obj Object, yield func(r Range, shared bool) bool) error
}

// Differ is implemented by backends with changed-block metadata.
type Differ interface {
	// Allocated yields the ranges of obj that hold data, ascending, from offset on.
	Allocated(ctx context.Context, obj Object, offset int64, yield func(Range) bool) error
	// Delta yields the ranges in which target differs from base.
	Delta(ctx context.Context, base, target Object, offset int64, yield func(Range) bool) error
}

// Measurer is implemented by backends whose volumes share a file system, where
// statfs would tell of the pool.
type Measurer interface {
	// Measure returns the bytes a volume uses and may use.
	Measure(ctx context.Context, obj Object) (used, limit int64, err error)
}

// Porter is implemented by backends whose payloads are one stream of bytes.
type Porter interface {
	// Export copies obj's bytes to dst, holes as holes; progress (may be nil) hears
	// of bytes that are done, and its error stops the copy.
	Export(ctx context.Context, obj Object, dst *os.File, progress func(done int64) error) error
	// Import replaces obj's bytes by src's; src is no longer than obj.
	Import(ctx context.Context, obj Object, src *os.File, progress func(done int64) error) error
}
