// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// version of the records below.
const version = "1"

// Bucket is the Book's top-level bucket in the daemon's database.
const Bucket = "cni-ipam"

const (
	keyVersion   = "version"
	bucketLeases = "leases"
	bucketFreed  = "freed"
)

// Also is work that the caller wants done in the transaction that records the
// leases; its error undoes both.
type Also func(tx *bbolt.Tx, leases []Lease) error

// Book is an allocator whose leases are recorded. It is safe for concurrent use.
type Book struct {
	db  *bbolt.DB
	now func() time.Time

	mu    sync.Mutex // guards alloc and freed
	alloc *Allocator
	// freed has the addresses whose ranges were not set yet when they were read.
	freed map[netip.Addr]time.Time
}

// NewBook returns a book over db; Load reads it.
func NewBook(db *bbolt.DB, quarantine time.Duration, now func() time.Time) *Book {
	return &Book{db: db, now: now, alloc: NewAllocator(quarantine), freed: map[netip.Addr]time.Time{}}
}

// Load makes the buckets if need be and reads the recorded leases. It refuses
// records of a newer version.
func (b *Book) Load() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.db.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists([]byte(Bucket))
		if err != nil {
			return err
		}
		if v := root.Get([]byte(keyVersion)); v == nil {
			if err := root.Put([]byte(keyVersion), []byte(version)); err != nil {
				return err
			}
		} else if string(v) != version {
			return fmt.Errorf("records have version %s, this program knows %s; it must not be older than the one that wrote them", v, version)
		}
		leases, err := root.CreateBucketIfNotExists([]byte(bucketLeases))
		if err != nil {
			return err
		}
		freed, err := root.CreateBucketIfNotExists([]byte(bucketFreed))
		if err != nil {
			return err
		}
		return errors.Join(leases.ForEach(b.loadLease), freed.ForEach(b.loadFreed))
	})
	if err != nil {
		return fmt.Errorf("load leases: %w", err)
	}
	return nil
}

func (b *Book) loadLease(k, v []byte) error {
	var l Lease
	if err := json.Unmarshal(v, &l); err != nil {
		return fmt.Errorf("lease %s: %w", k, err)
	}
	return b.alloc.Restore(l)
}

func (b *Book) loadFreed(k, v []byte) error {
	var addr netip.Addr
	var at time.Time
	if err := errors.Join(addr.UnmarshalText(k), at.UnmarshalText(v)); err != nil {
		return fmt.Errorf("freed address %q: %w", k, err)
	}
	if now := b.now(); at.After(now) {
		at = now // the clock went back: rest from now, not for hours
	}
	b.freed[addr] = at
	return nil
}

// SetPool replaces the ranges of a pool, see Allocator.SetPool.
func (b *Book) SetPool(name string, prefixes []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.alloc.SetPool(name, prefixes); err != nil {
		return fmt.Errorf("set pool %q: %w", name, err)
	}
	var known []freed
	for addr, at := range b.freed {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			known = append(known, freed{addr, at})
			delete(b.freed, addr)
		}
	}
	slices.SortFunc(known, func(x, y freed) int { return x.at.Compare(y.at) })
	for _, f := range known {
		b.alloc.RestoreFreed(f.addr, f.at)
	}
	return nil
}

// Acquire gives the owner its addresses and records them. An owner that has
// some already gets the same ones; also runs in any case (nil: nothing).
func (b *Book) Acquire(req Request, also Also) ([]Lease, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	had := len(b.alloc.owners[req.Owner]) > 0
	leases, err := b.alloc.Allocate(b.now(), req)
	if err != nil {
		return nil, fmt.Errorf("allocate for %s: %w", req.Owner, err)
	}
	err = b.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(putLeases(tx, leases), runAlso(tx, also, leases))
	})
	if err == nil {
		return leases, nil
	}
	if !had {
		b.alloc.Undo(req.Owner)
	}
	return nil, fmt.Errorf("record leases of %s: %w", req.Owner, err)
}

func putLeases(tx *bbolt.Tx, leases []Lease) error {
	root := tx.Bucket([]byte(Bucket))
	for _, l := range leases {
		v, err := json.Marshal(l)
		if err != nil {
			return err
		}
		k := []byte(l.Addr.String())
		if err := root.Bucket([]byte(bucketFreed)).Delete(k); err != nil {
			return err
		}
		if err := root.Bucket([]byte(bucketLeases)).Put(k, v); err != nil {
			return err
		}
	}
	return nil
}

func runAlso(tx *bbolt.Tx, also Also, leases []Lease) error {
	if also == nil {
		return nil
	}
	return also(tx, leases)
}

// Release takes all addresses of an owner back. An unknown owner is success;
// also runs in any case, with the leases that are given back.
func (b *Book) Release(owner string, also Also) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	leases := b.alloc.Owned(owner)
	err := b.db.Update(func(tx *bbolt.Tx) error {
		root := tx.Bucket([]byte(Bucket))
		at, err := now.MarshalText()
		if err != nil {
			return err
		}
		for _, l := range leases {
			k := []byte(l.Addr.String())
			if err := root.Bucket([]byte(bucketLeases)).Delete(k); err != nil {
				return err
			}
			if err := root.Bucket([]byte(bucketFreed)).Put(k, at); err != nil {
				return err
			}
		}
		return runAlso(tx, also, leases)
	})
	if err != nil {
		return fmt.Errorf("release leases of %s: %w", owner, err)
	}
	b.alloc.Release(now, owner)
	return nil
}

// Rename gives the addresses of one owner to another.
func (b *Book) Rename(from, to string, also Also) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.alloc.Rename(from, to); err != nil {
		return fmt.Errorf("rename owner %s: %w", from, err)
	}
	leases := b.alloc.Owned(to)
	err := b.db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(putLeases(tx, leases), runAlso(tx, also, leases))
	})
	if err != nil {
		return errors.Join(fmt.Errorf("rename owner %s: %w", from, err), b.alloc.Rename(to, from))
	}
	return nil
}

// Owned returns the leases of an owner, IPv4 first.
func (b *Book) Owned(owner string) []Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.alloc.Owned(owner)
}

// Leases returns all leases, sorted by address.
func (b *Book) Leases() []Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.alloc.Leases()
}

// Usage returns the state of every range, sorted by pool.
func (b *Book) Usage() []Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.alloc.Usage(b.now())
}
