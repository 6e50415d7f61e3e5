// SPDX-License-Identifier: Apache-2.0

// Package store keeps the records of sandboxes and containers: versioned JSON
// in two buckets of the daemon's state file, and the same records in memory, so
// that every list and status call is answered without touching the file.
//
// A record handed out is never changed again; a change makes a copy, writes it
// and then publishes it. A record on disk is an intent: what runs is known to
// containerd and the kernel, and recovery compares the two.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
)

// version of the layout of both buckets; a newer one on disk is refused.
const version = 1

// ErrVersion means that the state file was written by a newer daemon.
var ErrVersion = errors.New("state written by a newer version")

// Store owns the buckets cri_sandboxes and cri_containers.
type Store struct {
	Sandboxes  *Table[Sandbox]
	Containers *Table[Container]
}

// New returns the store over db; nothing is read before Load.
func New(db *bbolt.DB) *Store {
	return &Store{
		Sandboxes:  newTable(db, "cri_sandboxes", "sandbox", func(s *Sandbox) string { return s.ID }),
		Containers: newTable(db, "cri_containers", "container", func(c *Container) string { return c.ID }),
	}
}

// Load makes the buckets when they are absent and reads all records.
func (s *Store) Load() error {
	return errors.Join(s.Sandboxes.load(), s.Containers.load())
}

// ContainersOf lists the containers of a sandbox, in no order.
func (s *Store) ContainersOf(sandboxID string) []*Container {
	return s.Containers.Select(func(c *Container) bool { return c.SandboxID == sandboxID })
}

// Table holds records of one kind by id.
type Table[R any] struct {
	db     *bbolt.DB
	bucket []byte
	noun   string
	key    func(*R) string

	// mu guards rows, and orders writes to the file with their publication.
	mu   sync.RWMutex
	rows map[string]*R
}

func newTable[R any](db *bbolt.DB, bucket, noun string, key func(*R) string) *Table[R] {
	return &Table[R]{db: db, bucket: []byte(bucket), noun: noun, key: key, rows: map[string]*R{}}
}

// versionKey cannot collide with an id, which is hexadecimal.
const versionKey = "_version"

func (t *Table[R]) load() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(t.bucket)
		if err != nil {
			return fmt.Errorf("open bucket %s: %w", t.bucket, err)
		}
		if v := b.Get([]byte(versionKey)); v == nil {
			if err := b.Put([]byte(versionKey), fmt.Appendf(nil, "%d", version)); err != nil {
				return fmt.Errorf("write version of %s: %w", t.bucket, err)
			}
		} else if string(v) != fmt.Sprint(version) {
			return fmt.Errorf("bucket %s has version %s, this daemon knows %d: %w", t.bucket, v, version, ErrVersion)
		}
		return b.ForEach(func(k, v []byte) error {
			if string(k) == versionKey {
				return nil
			}
			r := new(R)
			if err := json.Unmarshal(v, r); err != nil {
				return fmt.Errorf("read %s %s: %w", t.noun, k, err)
			}
			t.rows[string(k)] = r
			return nil
		})
	})
}

// Get returns the record with exactly this id.
func (t *Table[R]) Get(id string) (*R, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r, ok := t.rows[id]
	return r, ok
}

// Find returns the record whose id is ref or begins with it. It fails with
// ErrNotFound, or ErrInvalidArgument when ref begins more than one id.
func (t *Table[R]) Find(ref string) (*R, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r, ok := t.rows[ref]; ok {
		return r, nil
	}
	var found *R
	if ref != "" {
		for id, r := range t.rows {
			if !strings.HasPrefix(id, ref) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("%s id prefix %q is not unique: %w", t.noun, ref, errdefs.ErrInvalidArgument)
			}
			found = r
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%s %q: %w", t.noun, ref, errdefs.ErrNotFound)
	}
	return found, nil
}

// Select lists the records for which keep is true (nil: all), in no order.
func (t *Table[R]) Select(keep func(*R) bool) []*R {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*R, 0, len(t.rows))
	for _, r := range t.rows {
		if keep == nil || keep(r) {
			out = append(out, r)
		}
	}
	return out
}

// Put writes a new record or replaces the one of the same id. The caller does
// not change r afterwards.
func (t *Table[R]) Put(r *R) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.put(r)
}

func (t *Table[R]) put(r *R) error {
	id := t.key(r)
	v, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", t.noun, id, err)
	}
	err = t.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(t.bucket).Put([]byte(id), v) })
	if err != nil {
		return fmt.Errorf("write %s %s: %w", t.noun, id, err)
	}
	t.rows[id] = r
	return nil
}

// Update applies change to a copy of the record, writes it and returns it.
// ErrNotFound when there is no such record; an error of change changes nothing.
func (t *Table[R]) Update(id string, change func(*R) error) (*R, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, ok := t.rows[id]
	if !ok {
		return nil, fmt.Errorf("%s %q: %w", t.noun, id, errdefs.ErrNotFound)
	}
	r := *old
	if err := change(&r); err != nil {
		return nil, err
	}
	if err := t.put(&r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Delete forgets the record; the absent is forgotten already.
func (t *Table[R]) Delete(id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(t.bucket).Delete([]byte(id)) })
	if err != nil {
		return fmt.Errorf("forget %s %s: %w", t.noun, id, err)
	}
	delete(t.rows, id)
	return nil
}
