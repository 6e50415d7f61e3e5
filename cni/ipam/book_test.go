// SPDX-License-Identifier: Apache-2.0

package ipam_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni/ipam"
)

type shelf struct {
	t   *testing.T
	db  *bbolt.DB
	now time.Time
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return &shelf{t: t, db: db, now: start}
}

// open returns a book as a daemon that has just started sees it.
func (s *shelf) open(cidrs ...string) *ipam.Book {
	s.t.Helper()
	b := ipam.NewBook(s.db, quarantine, func() time.Time { return s.now })
	if err := errors.Join(b.Load(), b.SetPool(ipam.DefaultPool, prefixes(cidrs...))); err != nil {
		s.t.Fatal(err)
	}
	return b
}

func TestBookSurvivesARestart(t *testing.T) {
	s := newShelf(t)
	cidrs := []string{"10.0.0.0/29", "fd00::/64"}
	b := s.open(cidrs...)
	for _, o := range []string{"a", "b", "c", "d", "e"} {
		if _, err := b.Acquire(ipam.Request{Owner: o}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []string{"d", "b"} {
		s.now = s.now.Add(time.Second)
		if err := b.Release(o, nil); err != nil {
			t.Fatal(err)
		}
	}
	b = s.open(cidrs...)
	if got := addrs(b.Leases()); got != "10.0.0.2 10.0.0.4 10.0.0.6 fd00::2 fd00::4 fd00::6" {
		t.Errorf("leases %s", got)
	}
	if _, err := b.Acquire(ipam.Request{Owner: "f"}, nil); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("Acquire = %v: the rest must survive a restart", err)
	}
	s.now = s.now.Add(quarantine)
	for _, want := range []string{"10.0.0.5", "10.0.0.3"} {
		got, err := b.Acquire(ipam.Request{Owner: want}, nil)
		if err != nil || got[0].Addr.String() != want {
			t.Errorf("Acquire = %s, %v, want %s", addrs(got), err, want)
		}
	}
}

func TestBookUndoesWhatItsCallerCannotRecord(t *testing.T) {
	s := newShelf(t)
	b := s.open("10.0.0.0/24")
	boom := errors.New("boom")
	fail := func(*bbolt.Tx, []ipam.Lease) error { return boom }
	if _, err := b.Acquire(ipam.Request{Owner: "a"}, fail); !errors.Is(err, boom) || len(b.Leases()) != 0 {
		t.Errorf("Acquire = %v, leases %v", err, b.Leases())
	}
	if _, err := b.Acquire(ipam.Request{Owner: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Acquire(ipam.Request{Owner: "a"}, fail); !errors.Is(err, boom) || len(b.Leases()) != 1 {
		t.Errorf("Acquire again = %v, leases %v: what it had must stay", err, b.Leases())
	}
	if err := b.Release("a", fail); !errors.Is(err, boom) || len(b.Leases()) != 1 {
		t.Errorf("Release = %v, leases %v", err, b.Leases())
	}
	if err := b.Rename("a", "b", fail); !errors.Is(err, boom) || b.Leases()[0].Owner != "a" {
		t.Errorf("Rename = %v, leases %v", err, b.Leases())
	}
	if err := errors.Join(b.Rename("a", "b", nil), b.Release("b", nil), b.Release("b", nil)); err != nil {
		t.Error(err)
	}
	if got := s.open("10.0.0.0/24").Leases(); len(got) != 0 {
		t.Errorf("recorded %v", got)
	}
}

func TestBookRefusesNewerRecords(t *testing.T) {
	s := newShelf(t)
	s.open("10.0.0.0/24")
	err := s.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(ipam.Bucket)).Put([]byte("version"), []byte("2"))
	})
	if err != nil {
		t.Fatal(err)
	}
	err = ipam.NewBook(s.db, quarantine, time.Now).Load()
	if err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("Load = %v, want a refusal of version 2", err)
	}
}

func TestBookWhenTheClockGoesBack(t *testing.T) {
	s := newShelf(t)
	b := s.open("10.0.0.0/30")
	if _, err := b.Acquire(ipam.Request{Owner: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Release("a", nil); err != nil {
		t.Fatal(err)
	}
	s.now = s.now.Add(-time.Hour)
	b = s.open("10.0.0.0/30")
	s.now = s.now.Add(quarantine)
	if _, err := b.Acquire(ipam.Request{Owner: "a"}, nil); err != nil {
		t.Errorf("Acquire = %v: an address must not rest for an hour", err)
	}
}
