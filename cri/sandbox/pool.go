// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Warmer gives namespaces that wait for a pod what of its network costs time. Attach in such a namespace takes it over.
type Warmer interface {
	Warm(ctx context.Context, k cni.Key, path string) error
	Detach(ctx context.Context, k cni.Key) error
	// WarmSlots are all that wait.
	WarmSlots() []cni.Key
}

// The pool's pace.
const (
	// poolQuiet is how long no sandbox has to be made before the pool makes one: pods go first.
	poolQuiet = 200 * time.Millisecond
	// poolWindow is the time over which the rate of claims is seen, poolAhead what of it the pool holds.
	poolWindow = time.Minute
	poolAhead  = 5 * time.Second
	// poolIdle is what it holds at rest.
	poolIdle = 2
	// poolRetry is the time between two looks when nothing happens, and after a failure.
	poolRetry = 10 * time.Second
	// poolTimeout bounds the making or the dropping of one.
	poolTimeout = 30 * time.Second
)

// poolFlags are the namespaces of a pod of the usual kind, which is the only one that is made ahead.
const poolFlags = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// pool keeps namespaces with a link and addresses for the next pods. A slot is a directory of pins with the same names as a
// sandbox's; claiming it is renaming the directory. None of it outlives the daemon: what an earlier one left is dropped
// before the pool begins.
type pool struct {
	m    *Manager
	most int
	net  Warmer
	wake chan struct{}

	mu     sync.Mutex // guards what follows
	free   []string
	claims []time.Time // within poolWindow, the oldest first
	// busy is how many sandboxes are being made, last when one was.
	busy int
	last time.Time
	// hits and misses count the claims of pods that could have had a slot.
	hits, misses uint64
}

// newPool returns a pool, or nil when none is wanted or possible.
func newPool(m *Manager) *pool {
	if m.cfg.WarmPool == 0 || m.deps.Warm == nil {
		return nil
	}
	return &pool{m: m, most: m.cfg.WarmPool, net: m.deps.Warm, wake: make(chan struct{}, 1)}
}

// PoolStats are the pool's size now and the claims it has met and missed. Zero without a pool.
func (m *Manager) PoolStats() (size int, hits, misses uint64) {
	if m.pool == nil {
		return 0, 0, 0
	}
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	return len(m.pool.free), m.pool.hits, m.pool.misses
}

func (p *pool) dir(slot string) string { return filepath.Join(p.m.cfg.StateDir, "pool", slot) }

func slotKey(slot string) cni.Key { return cni.Key{ContainerID: slot, IfName: ifName} }

// suits says whether a pod is of the usual kind.
func suits(sb *store.Sandbox, flags int) bool {
	l := sb.Config.M.GetLinux()
	return flags == poolFlags && userNamespace(sb.NamespaceOptions()) == nil && len(l.GetSysctls()) == 0
}

// claim makes a slot the namespaces of a sandbox, in the directory of its pins; "" when there is none.
func (p *pool) claim(pins string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.poke()
	p.claims = append(p.claims, time.Now())
	for len(p.free) > 0 {
		slot := p.free[0]
		p.free = p.free[1:]
		if err := os.MkdirAll(filepath.Dir(pins), 0o700); err == nil && os.Rename(p.dir(slot), pins) == nil {
			p.hits++
			return slot
		}
		p.m.background(func(ctx context.Context) { p.drop(ctx, slot) })
	}
	p.misses++
	return ""
}

// making tells the pool that a sandbox is being made; the returned function, that it is done.
func (p *pool) making() func() {
	if p == nil {
		return func() {}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.busy--
		p.last = time.Now()
		p.poke()
	}
}

func (p *pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// wanted is how many slots there should be. Call with the lock held.
func (p *pool) wanted(now time.Time) int {
	for len(p.claims) > 0 && now.Sub(p.claims[0]) > poolWindow {
		p.claims = p.claims[1:]
	}
	ahead := len(p.claims) * int(poolAhead/time.Second) / int(poolWindow/time.Second)
	return min(p.most, poolIdle+ahead)
}

// run keeps the pool filled until ctx ends, and drops it then.
func (p *pool) run(ctx context.Context) {
	defer p.dropAll(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		timer.Reset(p.step(ctx))
	}
}

// step does one thing and returns when to look again.
func (p *pool) step(ctx context.Context) time.Duration {
	now := time.Now()
	p.mu.Lock()
	quiet := p.busy == 0 && now.Sub(p.last) >= poolQuiet
	missing := p.wanted(now) - len(p.free)
	var spare string
	if missing < 0 {
		spare, p.free = p.free[0], p.free[1:]
	}
	p.mu.Unlock()
	switch {
	case spare != "":
		p.drop(ctx, spare)
		return 0
	case missing > 0 && !quiet:
		return poolQuiet
	case missing > 0:
		if err := p.add(ctx); err != nil {
			p.m.deps.Log.DebugContext(ctx, "no sandbox is made ahead", "err", err)
			return poolRetry
		}
		return 0
	}
	return poolRetry
}

// add makes one slot.
func (p *pool) add(ctx context.Context) (retErr error) {
	slot := "warm-" + store.NewID()[:16]
	ctx, cancel := context.WithTimeout(ctx, poolTimeout)
	defer cancel()
	defer func() {
		if retErr != nil {
			p.drop(ctx, slot)
		}
	}()
	err := makeNamespaces(p.dir(slot), poolFlags, nil, func() error {
		return errors.Join(raiseLoopback(), writeSysctls(p.m.sysctls(&runtimeapi.PodSandboxConfig{}, poolFlags, false)))
	})
	if err != nil {
		return err
	}
	if err := p.net.Warm(ctx, slotKey(slot), filepath.Join(p.dir(slot), "net")); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, slot)
	return nil
}

// drop removes a slot, or what there is of it. What cannot be removed is found by recovery.
func (p *pool) drop(ctx context.Context, slot string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), poolTimeout)
	defer cancel()
	if err := errors.Join(p.net.Detach(ctx, slotKey(slot)), dropNamespaces(p.dir(slot))); err != nil {
		p.m.deps.Log.WarnContext(ctx, "a warm sandbox stays", "slot", slot, "err", err)
	}
}

// dropAll empties the pool, and says whether there was something in it.
func (p *pool) dropAll(ctx context.Context) bool {
	p.mu.Lock()
	slots := p.free
	p.free = nil
	p.mu.Unlock()
	for _, s := range slots {
		p.drop(ctx, s)
	}
	return len(slots) > 0
}

// recoverPool drops the slots of an earlier daemon, those that were claimed and not attached among them, and begins anew. It is
// called also without a pool: there may have been one.
func (m *Manager) recoverPool(ctx context.Context) error {
	var errs []error
	if m.deps.Warm != nil {
		for _, k := range m.deps.Warm.WarmSlots() {
			if err := m.deps.Warm.Detach(ctx, k); err != nil {
				errs = append(errs, fmt.Errorf("drop warm network %s: %w", k, err))
			}
		}
	}
	errs = append(errs, m.prune("pool", dropNamespaces))
	if m.pool != nil {
		m.background(m.pool.run)
	}
	return errors.Join(errs...)
}
