// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// recordVersion is what this build writes; a newer one is refused untouched.
const recordVersion = 1

// Kind tells records apart.
type Kind string

// The kinds of record.
const (
	KindVolume   Kind = "volume"
	KindSnapshot Kind = "snapshot"
)

// Format is what we know, and never guess, about a payload's contents.
type Format string

// The states of a payload's contents. "formatting" without "formatted" is a
// crash inside mkfs: nothing was ever mounted, so mkfs may run again.
const (
	FormatNone   Format = ""           // fresh, all zeroes
	FormatBegun  Format = "formatting" // mkfs was started
	FormatDone   Format = "formatted"  // carries FSType
	FormatRaw    Format = "raw"        // was published as a block device
	FormatNative Format = "native"     // the backend itself is the file system
)

// SourceRef says what a volume was made from.
type SourceRef struct {
	Kind Kind   `json:"kind"`
	ID   string `json:"id"`
}

// Record is one volume's or snapshot's meta.json.
type Record struct {
	Version int       `json:"version"`
	Kind    Kind      `json:"kind"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Handle  string    `json:"handle"`
	Bytes   int64     `json:"bytes"`
	Created time.Time `json:"created"`
	Params  Params    `json:"params"`

	Labels map[string]string `json:"labels,omitempty"`
	Source *SourceRef        `json:"source,omitempty"` // of a volume
	Volume string            `json:"volume,omitempty"` // of a snapshot: its source
	// Group is set for a snapshot in a group.
	Group *GroupRef `json:"group,omitempty"`

	Block  bool   `json:"block,omitempty"` // made for raw block use
	FSType string `json:"fsType,omitempty"`
	Format Format `json:"format,omitempty"`
	// GrowTo is an intent: the payload is being made this large.
	GrowTo int64 `json:"growTo,omitempty"`
	// Resize says that the file system is smaller than its device.
	Resize bool `json:"resize,omitempty"`
	// Shared says that blocks are or were shared with another object, so that
	// the ledger has to follow extents.
	Shared bool `json:"shared,omitempty"`
	// Pod is set for ephemeral inline volumes.
	Pod *PodRef `json:"pod,omitempty"`
}

// GroupState is where a group snapshot is; every member's record has it.
type GroupState string

// The states of a group. All members are "making" until every one of them is
// committed, and all are "unmaking" before the first one goes, so that from any
// mixture recovery knows which way to finish.
const (
	GroupReady    GroupState = ""
	GroupMaking   GroupState = "making"
	GroupUnmaking GroupState = "unmaking"
)

// GroupRef is a snapshot's membership: any member tells of the whole group.
type GroupRef struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	State GroupState `json:"state,omitempty"`
	// Members maps snapshot ids to the volumes they are of.
	Members map[string]string `json:"members"`
}

// PodRef names the pod an ephemeral volume belongs to.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// String is what people call the pod; empty when that is not known.
func (p PodRef) String() string {
	if p.Name == "" {
		return ""
	}
	return p.Namespace + "/" + p.Name
}

const metaName = "meta.json"

// volumeID derives a volume's id from its name: idempotency without an index,
// and any Unicode name becomes a safe path component.
func (c Config) volumeID(name string) string   { return "vol-" + c.hash("volume", name) }
func (c Config) snapshotID(name string) string { return "snap-" + c.hash("snapshot", name) }
func (c Config) groupID(name string) string    { return "group-" + c.hash("group", name) }

func (c Config) hash(kind, name string) string {
	h := sha256.Sum256([]byte(kind + "\x00" + c.NodeName + "\x00" + name))
	return hex.EncodeToString(h[:16])
}

func validID(id string) bool {
	return len(id) <= 128 && regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`).MatchString(id) &&
		!bytes.Contains([]byte(id), []byte(".."))
}

func newHandle() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

// writeJSON replaces path by v so that a crash leaves the old or the new, whole.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = mount.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// readRecord reads and checks a meta.json; dir's name must be the record's id.
func readRecord(dir string) (Record, error) {
	var r Record
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return r, fmt.Errorf("read record: %w", err)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return r, fmt.Errorf("%w: %s is not JSON: %w", ErrDamaged, filepath.Join(dir, metaName), err)
	}
	if v.Version > recordVersion {
		return r, fmt.Errorf("%w: %s has version %d, this build knows up to %d; it was written by a newer nodeagent",
			ErrDamaged, filepath.Join(dir, metaName), v.Version, recordVersion)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(dir, metaName), err)
	}
	return r, r.check(filepath.Base(dir))
}

// readLoose reads what it can of a record that may be half made.
func readLoose(dir string) (Record, error) {
	var r Record
	b, err := os.ReadFile(filepath.Join(dir, metaName))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

func (r Record) check(id string) error {
	var errs []error
	if r.ID != id || !validID(r.ID) {
		errs = append(errs, fmt.Errorf("id %q in directory %q", r.ID, id))
	}
	if r.Kind != KindVolume && r.Kind != KindSnapshot {
		errs = append(errs, fmt.Errorf("kind %q", r.Kind))
	}
	if r.Bytes <= 0 {
		errs = append(errs, fmt.Errorf("size %d", r.Bytes))
	}
	if r.GrowTo != 0 && r.GrowTo < r.Bytes {
		errs = append(errs, fmt.Errorf("growTo %d below size %d", r.GrowTo, r.Bytes))
	}
	switch r.Format {
	case FormatNone, FormatBegun, FormatDone, FormatRaw, FormatNative:
	default:
		errs = append(errs, fmt.Errorf("format %q", r.Format))
	}
	if r.Handle == "" {
		errs = append(errs, errors.New("no handle"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("%w: record of %s: %w", ErrDamaged, id, errors.Join(errs...))
	}
	return nil
}
