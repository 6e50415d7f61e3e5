// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

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

// stateStore keeps attachState records in the room's own bucket. The file has one
// writer at a time, and even its readers queue up: so reading is from memory, and
// those who write at once are written in one transaction.
type stateStore struct {
	db *bbolt.DB
	// writer is the right to write the file
	writer chan struct{}

	// mu guards the fields below
	mu      sync.Mutex
	known   map[string][]byte // what is in the file, by id
	waiting []*stateWrite
}

// stateWrite is one record on its way into the file.
type stateWrite struct {
	id   string
	text []byte // nil: remove it
	err  error  // of the transaction; read after done
	done chan struct{}
}

func newStateStore(db *bbolt.DB) *stateStore {
	return &stateStore{db: db, writer: make(chan struct{}, 1), known: map[string][]byte{}}
}

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
		all, err := room.CreateBucketIfNotExists([]byte(bucketAttach))
		if err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return all.ForEach(func(id, text []byte) error {
			s.known[string(id)] = bytes.Clone(text)
			return nil
		})
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
	s.mu.Lock()
	text := s.known[id]
	s.mu.Unlock()
	if text != nil {
		if err := json.Unmarshal(text, st); err != nil {
			return nil, fmt.Errorf("read attachment record of %s: %w", id, err)
		}
	}
	if st.Staged == nil {
		st.Staged = map[string]stageArgs{}
	}
	if st.Targets == nil {
		st.Targets = map[string]targetArgs{}
	}
	return st, nil
}

// update reads, changes and writes one record; its object's lock is held.
func (s *stateStore) update(id string, change func(st *attachState)) error {
	st, err := s.get(id)
	if err != nil {
		return err
	}
	change(st)
	w := &stateWrite{id: id, done: make(chan struct{})}
	if !st.empty() {
		if w.text, err = json.Marshal(st); err != nil {
			return fmt.Errorf("write attachment record of %s: %w", id, err)
		}
	}
	if err := s.write(w); err != nil {
		return fmt.Errorf("write attachment record of %s: %w", id, err)
	}
	return nil
}

// write returns when w is in the file: somebody else has taken it along, or it is
// this caller's turn, who takes along all that wait.
func (s *stateStore) write(w *stateWrite) error {
	s.mu.Lock()
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case s.writer <- struct{}{}:
		defer func() { <-s.writer }()
	}
	s.mu.Lock()
	all := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	if len(all) > 0 {
		s.commit(all)
	}
	<-w.done
	return w.err
}

func (s *stateStore) commit(all []*stateWrite) {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		for _, w := range all {
			var err error
			if w.text == nil {
				err = bucketOf(tx).Delete([]byte(w.id))
			} else {
				err = bucketOf(tx).Put([]byte(w.id), w.text)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range all {
		switch w.err = err; {
		case err != nil:
		case w.text == nil:
			delete(s.known, w.id)
		default:
			s.known[w.id] = w.text
		}
		close(w.done)
	}
}

// all returns every record; one that cannot be read is left out and reported.
func (s *stateStore) all() ([]*attachState, error) {
	s.mu.Lock()
	known := maps.Clone(s.known)
	s.mu.Unlock()
	var out []*attachState
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(known)) {
		st := &attachState{}
		if err := json.Unmarshal(known[id], st); err != nil {
			errs = append(errs, fmt.Errorf("attachment record %s: %w", id, err))
			continue
		}
		out = append(out, st)
	}
	return out, errors.Join(errs...)
}

// paths of a record, targets first, in a fixed order.
func (s *attachState) targetPaths() []string { return slices.Sorted(maps.Keys(s.Targets)) }
func (s *attachState) stagePaths() []string  { return slices.Sorted(maps.Keys(s.Staged)) }
