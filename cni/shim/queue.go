// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxQueued bounds the queue. A delete beyond it is a success all the same: the
// daemon's reconciliation finds an attachment whose pod is gone by itself.
const maxQueued = 4096

// lockPatience bounds the wait for a daemon that is starting.
const lockPatience = 10 * time.Second

// Queue is a directory of deletes that wait for the daemon. Writers share its
// lock; the daemon holds it alone from its start until it serves, so that no
// delete is written down after the last look at the queue.
type Queue struct{ Dir string }

// Lock is a held lock of a queue.
type Lock struct{ f *os.File }

// Unlock releases the lock.
func (l *Lock) Unlock() error { return l.f.Close() }

// Lock takes the lock, alone or shared with others, within a time.
func (q Queue) Lock(alone bool, within time.Duration) (*Lock, error) {
	if err := os.MkdirAll(q.Dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(q.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	how := syscall.LOCK_SH
	if alone {
		how = syscall.LOCK_EX
	}
	deadline := time.Now().Add(within)
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return &Lock{f}, nil
		}
		retry := errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR)
		if !retry || time.Now().After(deadline) {
			return nil, errors.Join(&os.PathError{Op: "lock", Path: f.Name(), Err: err}, f.Close())
		}
		<-time.After(retryEvery)
	}
}

// suffix of the files in the queue.
const suffix = ".json"

// name is the same for the same attachment, so that a repeated delete is one.
func (q Queue) name(containerID, ifName string) string {
	h := fnv.New128a()
	_, _ = h.Write([]byte(containerID + "/" + ifName)) // a hash never fails
	return filepath.Join(q.Dir, hex.EncodeToString(h.Sum(nil))+suffix)
}

// Put writes a delete down; the caller has the lock.
func (q Queue) Put(c Call) error {
	entries, err := os.ReadDir(q.Dir)
	if err != nil || len(entries) > maxQueued {
		return err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(q.Dir, ".put-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(body)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), q.name(c.ContainerID, c.IfName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// Each calls f for every delete that waits and removes those for which it
// returns nil. What is no delete is removed. It goes on past errors.
func (q Queue) Each(f func(Call) error) error {
	entries, err := os.ReadDir(q.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(q.Dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), suffix):
			errs = append(errs, replay(path, f))
		case strings.HasPrefix(e.Name(), ".put-"):
			errs = append(errs, os.Remove(path)) // a writer that was killed
		}
	}
	return errors.Join(errs...)
}

func replay(path string, f func(Call) error) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var c Call
	if json.Unmarshal(body, &c) == nil {
		if err := f(c); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// Forget removes the delete of an attachment that is being made anew.
func (q Queue) Forget(containerID, ifName string) error {
	err := os.Remove(q.name(containerID, ifName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// deleteOrQueue asks the daemon; if it is away the delete is written down.
func (d daemon) deleteOrQueue(q Queue, c Call) ([]byte, error) {
	body, err := d.exchange(0)
	if !isAway(err) && !isStarting(err) {
		return body, err
	}
	lock, err := q.Lock(false, lockPatience)
	if err != nil {
		return nil, fault(CodeTryAgain, "the nodeagent daemon does not answer and its queue cannot be used", err.Error())
	}
	defer lock.Unlock() //nolint:errcheck // the process ends, and with it the lock
	// The daemon may have started while we waited for the lock.
	if body, err = d.exchange(0); !isAway(err) && !isStarting(err) {
		return body, err
	}
	if err := q.Put(c); err != nil {
		return nil, fault(CodeIO, "the delete cannot be written down for the daemon", err.Error())
	}
	return nil, nil
}

// isStarting says if the daemon answered that it cannot serve yet.
func isStarting(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == CodeTryAgain
}
