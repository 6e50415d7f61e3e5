// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/backend/image"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// markerName is the file that says a directory is a pool. A pool whose disk is
// not mounted has none, and is not written through.
const markerName = ".nodeagent-pool.json"

// The directories of a pool. Creation builds in dirNew and commits by a rename;
// deletion begins with a rename to dirTrash.
const (
	dirVolumes   = "v"
	dirSnapshots = "s"
	dirNew       = "n"
	dirTrash     = "t"
)

type marker struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Backend string    `json:"backend"`
	Created time.Time `json:"created"`
}

// pool is one configured pool.
type pool struct {
	cfg PoolConfig
	be  backend.Backend

	// mu guards the fields below
	mu       sync.Mutex
	open     bool
	err      error // why it is not open
	features backend.Features

	// books guards the fields below. It is held while the pool is measured, which may
	// take long: only those who ask for space wait for it.
	books    sync.Mutex
	pending  map[string]int64 // promised to verbs at work
	debts    map[string]debt  // measured with extents, by object id
	shared   map[string]int64 // of these, copies of blocks in common; nil: not measured
	sharedAt time.Time
}

type debt struct {
	bytes int64
	at    time.Time
}

func newPool(cfg PoolConfig, be backend.Backend) *pool {
	return &pool{
		cfg: cfg, be: be, pending: map[string]int64{}, debts: map[string]debt{},
		err: fmt.Errorf("%w: pool %s has not been opened yet", ErrUnavailable, cfg.Name),
	}
}

func (p *pool) dir(kind Kind, id string) string {
	if kind == KindSnapshot {
		return filepath.Join(p.cfg.Path, dirSnapshots, id)
	}
	return filepath.Join(p.cfg.Path, dirVolumes, id)
}

// ready returns what the pool can do, or why it cannot serve.
func (p *pool) ready() (backend.Features, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open {
		return backend.Features{}, p.err
	}
	return p.features, nil
}

func (p *pool) setState(f backend.Features, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.features, p.err, p.open = f, err, err == nil
}

// check makes sure that the pool's directory is still the pool, before a verb
// writes to it: an unmounted disk shows the empty directory below.
func (p *pool) check() error {
	if _, err := p.ready(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(p.cfg.Path, markerName)); err != nil {
		return fmt.Errorf("%w: pool %s: the marker is gone, is its file system still mounted? (%w)", ErrUnavailable, p.cfg.Name, err)
	}
	return nil
}

// knownPools remembers across reboots which pool stood at which path.
type knownPools map[string]marker

func readKnownPools(dir string) (knownPools, error) {
	known := knownPools{}
	b, err := os.ReadFile(filepath.Join(dir, "pools.json"))
	if errors.Is(err, os.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read known pools: %w", err)
	}
	if err := json.Unmarshal(b, &known); err != nil {
		return nil, fmt.Errorf("read known pools: %s: %w", filepath.Join(dir, "pools.json"), err)
	}
	return known, nil
}

// openPool finds or makes the marker, probes the backend and makes the pool's
// directories.
func (m *Manager) openPool(ctx context.Context, p *pool) (backend.Features, error) {
	if err := m.identify(p.cfg); err != nil {
		return backend.Features{}, fmt.Errorf("%w: pool %s: %w", ErrUnavailable, p.cfg.Name, err)
	}
	for _, d := range []string{dirVolumes, dirSnapshots, dirNew, dirTrash} {
		if err := os.Mkdir(filepath.Join(p.cfg.Path, d), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return backend.Features{}, fmt.Errorf("%w: pool %s: %w", ErrUnavailable, p.cfg.Name, err)
		}
	}
	f, err := p.be.Probe(ctx)
	if err != nil {
		return f, fmt.Errorf("%w: pool %s: %w", ErrUnavailable, p.cfg.Name, err)
	}
	return f, nil
}

// identify decides whether the directory is the pool that it was.
func (m *Manager) identify(cfg PoolConfig) error {
	known, err := readKnownPools(m.cfg.StateDir)
	if err != nil {
		return err
	}
	was, seen := known[cfg.Path]
	if err := requireDir(cfg, seen); err != nil {
		return err
	}
	mk, err := readMarker(cfg.Path)
	if errors.Is(err, os.ErrNotExist) && !seen {
		mk, err = newMarker(cfg)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s carries no marker, but was pool %s before: its file system is not mounted", cfg.Path, was.ID)
	case err != nil:
		return err
	case seen && mk.ID != was.ID:
		return fmt.Errorf("%s carries pool %s, but was pool %s before: another disk is mounted there", cfg.Path, mk.ID, was.ID)
	case mk.Backend != cfg.Backend:
		return fmt.Errorf("%s was made for backend %s, not %s", cfg.Path, mk.Backend, cfg.Backend)
	case seen:
		return nil
	}
	known[cfg.Path] = mk
	return writeJSON(filepath.Join(m.cfg.StateDir, "pools.json"), known)
}

// requireDir makes the pool's directory when it may be made: never below the
// mount point of a disk that is away.
func requireDir(cfg PoolConfig, seen bool) error {
	if !cfg.RequireMount && !seen {
		return os.MkdirAll(cfg.Path, 0o700)
	}
	if !cfg.RequireMount {
		return nil
	}
	at, err := mount.At(cfg.Path)
	if err == nil && !at.Mounted {
		err = fmt.Errorf("%s is not a mount point, and requireMount is set", cfg.Path)
	}
	return err
}

func readMarker(dir string) (marker, error) {
	var mk marker
	b, err := os.ReadFile(filepath.Join(dir, markerName))
	if err != nil {
		return mk, err
	}
	if err := json.Unmarshal(b, &mk); err != nil {
		return mk, fmt.Errorf("%s: %w", filepath.Join(dir, markerName), err)
	}
	if mk.Version > recordVersion {
		return mk, fmt.Errorf("%s has version %d, this build knows up to %d", filepath.Join(dir, markerName), mk.Version, recordVersion)
	}
	return mk, nil
}

// mayStand lists what an unclaimed directory may hold.
func mayStand(cfg PoolConfig, name string) bool {
	switch name {
	case "lost+found", markerName + ".tmp":
		return true
	case image.Directory:
		return cfg.Backend == BackendImage
	default:
		return false
	}
}

// newMarker claims an empty directory as a pool.
func newMarker(cfg PoolConfig) (marker, error) {
	names, err := os.ReadDir(cfg.Path)
	if err != nil {
		return marker{}, err
	}
	for _, n := range names {
		if !mayStand(cfg, n.Name()) {
			return marker{}, fmt.Errorf("%s carries no marker and is not empty (%s): not made into a pool", cfg.Path, n.Name())
		}
	}
	mk := marker{Version: recordVersion, ID: uuid.NewString(), Backend: cfg.Backend, Created: time.Now().UTC()}
	return mk, writeJSON(filepath.Join(cfg.Path, markerName), mk)
}
