// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/bbolt"
)

// stateVersion of the attachment records.
const stateVersion = 1

// attachState is what was asked for of one volume on this node. It lives in the
// daemon's state file under /run: mounts and loop devices die with the boot, and
// so do these. The kernel stays the truth: an entry without its mount is stale.
type attachState struct {
	Volume  string                `json:"volume"`
	Staged  map[string]stageArgs  `json:"staged,omitempty"`  // by staging path
	Targets map[string]targetArgs `json:"targets,omitempty"` // by target path
	// Frozen is the path of a file system that a snapshot froze.
	Frozen string `json:"frozen,omitempty"`
}

// stageArgs are what decides whether two Stage calls are the same. The group is not
// among them: pods of several groups may share a volume, and each publish gives it.
type stageArgs struct {
	Block  bool     `json:"block,omitempty"`
	FSType string   `json:"fsType,omitempty"`
	Flags  []string `json:"flags,omitempty"`
	// Reader says the access mode only reads.
	Reader bool `json:"reader,omitempty"`
}

func (a stageArgs) equal(b stageArgs) bool {
	return a.Block == b.Block && a.FSType == b.FSType && slices.Equal(a.Flags, b.Flags) && a.Reader == b.Reader
}

// targetArgs are what decides whether two Publish calls are the same.
type targetArgs struct {
	Staging  string     `json:"staging,omitempty"`
	Block    bool       `json:"block,omitempty"`
	ReadOnly bool       `json:"readOnly,omitempty"`
	Mode     AccessMode `json:"mode"`
	Flags    []string   `json:"flags,omitempty"`
	PodUID   string     `json:"podUID,omitempty"`
	Pod      string     `json:"pod,omitempty"` // for people
}

func (a targetArgs) equal(b targetArgs) bool {
	return a.Block == b.Block && a.ReadOnly == b.ReadOnly && a.Mode == b.Mode && slices.Equal(a.Flags, b.Flags)
}

// sameUser says whether the same pod has it, by the same way.
func (a targetArgs) sameUser(b targetArgs) bool {
	return a.Staging == b.Staging && a.PodUID == b.PodUID && a.Pod == b.Pod
}

func (s *attachState) empty() bool {
	return len(s.Staged) == 0 && len(s.Targets) == 0 && s.Frozen == ""
}

// stateStore keeps attachState records in the room's own bucket.
type stateStore struct{ db *bbolt.DB }

const (
	bucketRoom    = "csi"
	bucketAttach  = "attachments"
	keyVersion    = "version"
	keyHaste      = "haste" // grace periods were made to hurry, see haste
	versionString = "1"
)

func (s *stateStore) open() error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		room, err := tx.CreateBucketIfNotExists([]byte(bucketRoom))
		if err != nil {
			return fmt.Errorf("open attachment records: %w", err)
		}
		if v := room.Get([]byte(keyVersion)); v != nil && string(v) != versionString {
			return fmt.Errorf("attachment records in %s have version %s, this build knows %d: they were written by a newer nodeagent", s.db.Path(), v, stateVersion)
		}
		if err := room.Put([]byte(keyVersion), []byte(versionString)); err != nil {
			return err
		}
		_, err = room.CreateBucketIfNotExists([]byte(bucketAttach))
		return err
	})
}

// hurried says whether grace periods were made to hurry and not yet calmed.
func (s *stateStore) hurried() (set bool) {
	_ = s.db.View(func(tx *bbolt.Tx) error {
		set = tx.Bucket([]byte(bucketRoom)).Get([]byte(keyHaste)) != nil
		return nil
	})
	return set
}

func (s *stateStore) setHurried(on bool) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		room := tx.Bucket([]byte(bucketRoom))
		if !on {
			return room.Delete([]byte(keyHaste))
		}
		return room.Put([]byte(keyHaste), []byte(versionString))
	})
}

func bucketOf(tx *bbolt.Tx) *bbolt.Bucket {
	return tx.Bucket([]byte(bucketRoom)).Bucket([]byte(bucketAttach))
}

func (s *stateStore) get(id string) (*attachState, error) {
	st := &attachState{Volume: id}
	err := s.db.View(func(tx *bbolt.Tx) error {
		b := bucketOf(tx).Get([]byte(id))
		if b == nil {
			return nil
		}
		return json.Unmarshal(b, st)
	})
	if err != nil {
		return nil, fmt.Errorf("read attachment record of %s: %w", id, err)
	}
	if st.Staged == nil {
		st.Staged = map[string]stageArgs{}
	}
	if st.Targets == nil {
		st.Targets = map[string]targetArgs{}
	}
	return st, nil
}

// update reads, changes and writes one record in one transaction.
func (s *stateStore) update(id string, change func(st *attachState)) error {
	st, err := s.get(id)
	if err != nil {
		return err
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		change(st)
		if st.empty() {
			return bucketOf(tx).Delete([]byte(id))
		}
		b, err := json.Marshal(st)
		if err != nil {
			return err
		}
		return bucketOf(tx).Put([]byte(id), b)
	})
	if err != nil {
		return fmt.Errorf("write attachment record of %s: %w", id, err)
	}
	return nil
}

// all returns every record; one that cannot be read is left out and reported.
func (s *stateStore) all() ([]*attachState, error) {
	var out []*attachState
	var errs []error
	err := s.db.View(func(tx *bbolt.Tx) error {
		return bucketOf(tx).ForEach(func(k, v []byte) error {
			st := &attachState{}
			if err := json.Unmarshal(v, st); err != nil {
				errs = append(errs, fmt.Errorf("attachment record %s: %w", k, err))
				return nil
			}
			out = append(out, st)
			return nil
		})
	})
	return out, errors.Join(append(errs, err)...)
}

// paths of a record, targets first, in a fixed order.
func (s *attachState) targetPaths() []string { return slices.Sorted(maps.Keys(s.Targets)) }
func (s *attachState) stagePaths() []string  { return slices.Sorted(maps.Keys(s.Staged)) }
