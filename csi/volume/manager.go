// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/csi/backend"
)

// lockWait is how long a verb waits for another on the same object before it
// answers that the object is busy.
const lockWait = 5 * time.Second

// poolRetry is how often a pool that could not be opened is tried again.
const poolRetry = 5 * time.Second

// Deps of a Manager.
type Deps struct {
	Log *slog.Logger
	// DB is the daemon's state file: attachment records, which die with the boot.
	DB *bbolt.DB
	// Changed (may be nil) is called, without blocking, after the free space of a
	// pool may have changed.
	Changed func(pool string)
	// Checkpoint (nil outside tests) is called before each step of each verb; its
	// error fails the step.
	Checkpoint func(verb, step string) error
}

// object is one entry of the index.
type object struct {
	rec  Record
	pool *pool
	// broken says why the object cannot be used; its directory is left alone.
	broken error
}

// Manager keeps the volumes of one node.
type Manager struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	locks *locks
	pools map[string]*pool // fixed after New
	state *stateStore
	io    *ioMeter
	haste *haste
	turns turns

	// mu guards the fields below
	mu      sync.Mutex
	objects map[string]*object // replaced, never changed in place
	faults  map[string]map[string]Condition
	stop    context.CancelFunc

	background sync.WaitGroup
}

// New checks the configuration and builds the manager; it touches nothing.
func New(cfg Config, deps Deps) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil || deps.DB == nil {
		return nil, errors.New("volume manager: a logger and a state file are needed")
	}
	m := &Manager{
		cfg: cfg, deps: deps, log: deps.Log, locks: newLocks(lockWait), pools: map[string]*pool{},
		state: newStateStore(deps.DB), io: newIOMeter(), turns: newTurns(), objects: map[string]*object{}, faults: map[string]map[string]Condition{},
	}
	m.haste = &haste{knob: rcuExpedited, state: m.state, log: m.log}
	for _, pc := range cfg.Pools {
		be, err := newBackend(pc)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", pc.Name, err)
		}
		m.pools[pc.Name] = newPool(pc, be)
	}
	return m, nil
}

// Start opens the pools and finishes what a crash left. A pool that cannot be
// opened does not fail the start: it is tried again until it comes, its volumes
// answer "unavailable" meanwhile, and its health says why.
func (m *Manager) Start(ctx context.Context) error {
	if err := os.MkdirAll(m.cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := m.state.open(); err != nil {
		return err
	}
	m.haste.recover(ctx)
	if err := m.thawAll(ctx); err != nil {
		return err
	}
	missing := 0
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		if err := m.bringUp(ctx, m.pools[name]); err != nil {
			m.log.ErrorContext(ctx, "pool not available", "pool", name, "err", err)
			missing++
		}
	}
	if missing == 0 {
		m.recoverGroups(ctx)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m.mu.Lock()
	m.stop = cancel
	m.mu.Unlock()
	m.background.Go(func() { m.retryPools(run) })
	m.background.Go(func() { m.keepLimits(run) })
	m.background.Go(func() { m.keepMeter(run) })
	return nil
}

// Stop ends the background work; volumes stay as they are.
func (m *Manager) Stop(context.Context) error {
	m.mu.Lock()
	cancel := m.stop
	m.stop = nil
	m.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	m.background.Wait()
	return nil
}

func (m *Manager) retryPools(ctx context.Context) {
	tick := time.NewTicker(poolRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.sweepTrash(ctx, "")
		opened, missing := 0, 0
		for _, p := range m.pools {
			if _, err := p.ready(); err == nil {
				continue
			}
			if err := m.bringUp(ctx, p); err != nil {
				missing++
				continue
			}
			opened++
			m.log.InfoContext(ctx, "pool opened", "pool", p.cfg.Name)
		}
		if opened > 0 && missing == 0 {
			m.recoverGroups(ctx)
		}
	}
}

// bringUp opens a pool, finishes its intents and puts its objects in the index.
func (m *Manager) bringUp(ctx context.Context, p *pool) error {
	f, err := m.openPool(ctx, p)
	if err == nil {
		err = m.recoverPool(ctx, p)
	}
	p.setState(f, err)
	if err == nil {
		m.changed(p)
	}
	return err
}

func (m *Manager) changed(p *pool) {
	if m.deps.Changed != nil {
		m.deps.Changed(p.cfg.Name)
	}
}

// object translates a record for the backend.
func (m *Manager) object(p *pool, r Record) backend.Object {
	opts := r.Params.Options
	if r.Params.Image != "" {
		opts = maps.Clone(opts)
		if opts == nil {
			opts = map[string]string{}
		}
		opts[ParamImage] = r.Params.Image
	}
	return backend.Object{
		ID: r.ID, Dir: p.dir(r.Kind, r.ID), Handle: r.Handle, Bytes: r.Bytes, Thin: r.Params.Thin, Options: opts,
	}
}

func (m *Manager) objectsOf(p *pool) []*object {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*object
	for _, o := range m.objects {
		if o.pool == p && o.broken == nil {
			out = append(out, o)
		}
	}
	return out
}

func (m *Manager) peek(id string) *object {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.objects[id]
}

func (m *Manager) put(o *object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[o.rec.ID] = o
}

func (m *Manager) drop(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, id)
	delete(m.faults, id)
	m.io.forget(id)
}

// find returns a usable object of this kind. What is not in the index is "not
// found" only when every pool is open; otherwise it may be in the one that is not.
func (m *Manager) find(kind Kind, id string) (*object, error) {
	o := m.peek(id)
	switch {
	case o != nil && o.broken != nil && o.rec.Kind == kind:
		return nil, o.broken
	case o != nil && o.rec.Kind == kind:
		return o, nil
	}
	if err := m.allOpen(); err != nil && validID(id) {
		return nil, fmt.Errorf("%s %q is in no open pool: %w", kind, id, err)
	}
	return nil, fmt.Errorf("%s %q: %w", kind, id, ErrNotFound)
}

func (m *Manager) allOpen() error {
	for _, p := range m.pools {
		if _, err := p.ready(); err != nil {
			return err
		}
	}
	return nil
}

// save writes a changed record and puts it in the index.
func (m *Manager) save(p *pool, r Record) error {
	if err := p.check(); err != nil {
		return err
	}
	if err := writeJSON(p.dir(r.Kind, r.ID)+"/"+metaName, r); err != nil {
		return m.spaceError(err)
	}
	m.put(&object{rec: r, pool: p})
	return nil
}

// Started says whether recovery is over.
func (m *Manager) Started() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stop != nil
}

// Ready says why some pool cannot serve; nil when all can.
func (m *Manager) Ready() error {
	if !m.Started() {
		return fmt.Errorf("%w: not started", ErrUnavailable)
	}
	return m.allOpen()
}

// Operations lists the verbs at work, oldest first.
func (m *Manager) Operations() []Operation { return m.locks.list() }
