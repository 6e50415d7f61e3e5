// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// bucket is the top-level bucket of attachments in the daemon's database.
const bucket = "cni"

// recordVersion of the records below.
const recordVersion = "1"

const (
	keyVersion        = "version"
	bucketAttachments = "attachments"
)

// state of an attachment. The intent is recorded before the first side effect
// and the record goes last:
//
//	(none) → pending → ready → deleting → (none)
//	   ↓      ↑  └───────────────↑
//	pending → warm ──────────────┘
type state string

const (
	// statePending: being made; after a crash it is undone.
	statePending state = "pending"
	// stateReady: in place, recorded as Result says.
	stateReady state = "ready"
	// stateWarm: a slot that waits for a pod, see Network.Warm.
	stateWarm state = "warm"
	// stateDeleting: being removed; after a crash the removal is finished.
	stateDeleting state = "deleting"
)

// record is what is kept of one attachment.
type record struct {
	State state `json:"state"`
	// RouteMTU is that of the default routes; 0: the device's.
	RouteMTU int `json:"routeMTU,omitempty"`
	// Request as it came, with annotations applied.
	Request Request `json:"request"`
	Result  Result  `json:"result"`
	// NetNSInode tells the namespace from a later one at the same path.
	NetNSInode uint64    `json:"netnsInode"`
	Since      time.Time `json:"since"`
}

// records are all attachments, in memory and in the database.
type records struct {
	db *bbolt.DB

	mu  sync.Mutex // guards all and warm
	all map[Key]record
	// warm has the slots by the inode of their namespace.
	warm map[uint64]Key
}

// load makes the bucket if need be and reads it; it refuses a newer version.
func (r *records) load() error {
	all := map[Key]record{}
	err := r.db.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		if v := root.Get([]byte(keyVersion)); v == nil {
			if err := root.Put([]byte(keyVersion), []byte(recordVersion)); err != nil {
				return err
			}
		} else if string(v) != recordVersion {
			return fmt.Errorf("records have version %s, this program knows %s; it must not be older than the one that wrote them", v, recordVersion)
		}
		b, err := root.CreateBucketIfNotExists([]byte(bucketAttachments))
		if err != nil {
			return err
		}
		return b.ForEach(func(k, v []byte) error {
			var rec record
			if err := json.Unmarshal(v, &rec); err != nil {
				return fmt.Errorf("attachment %s: %w", k, err)
			}
			all[rec.Request.Key] = rec
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("load attachments: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all, r.warm = all, map[uint64]Key{}
	for k, rec := range all {
		if rec.State == stateWarm {
			r.warm[rec.NetNSInode] = k
		}
	}
	return nil
}

func (r *records) get(k Key) (record, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, ok := r.all[k]
	return rec, ok
}

// list returns a copy of all records.
func (r *records) list() map[Key]record {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.all)
}

// put records rec in a transaction of its own.
func (r *records) put(rec record) error {
	if err := r.db.Update(func(tx *bbolt.Tx) error { return putRecord(tx, rec) }); err != nil {
		return fmt.Errorf("record attachment %s: %w", rec.Request.Key, err)
	}
	r.remember(rec)
	return nil
}

// remember makes memory agree with a transaction that was committed.
func (r *records) remember(rec record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all[rec.Request.Key] = rec
	if rec.State == stateWarm {
		r.warm[rec.NetNSInode] = rec.Request.Key
	}
}

func (r *records) forget(k Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec := r.all[k]; r.warm[rec.NetNSInode] == k {
		delete(r.warm, rec.NetNSInode)
	}
	delete(r.all, k)
}

func putRecord(tx *bbolt.Tx, rec record) error {
	v, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return attachments(tx).Put([]byte(rec.Request.String()), v)
}

func deleteRecord(tx *bbolt.Tx, k Key) error {
	return attachments(tx).Delete([]byte(k.String()))
}

func attachments(tx *bbolt.Tx) *bbolt.Bucket {
	return tx.Bucket([]byte(bucket)).Bucket([]byte(bucketAttachments))
}
