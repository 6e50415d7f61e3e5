// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Many volumes at once, every verb called twice at once by two callers: nobody
// sees anything but success or "busy", and nothing is left.
func TestRootManyAtOnce(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	stages, targets := make([]string, 24), make([]string, 24)
	for i := range stages {
		stages[i], targets[i] = w.path(fmt.Sprintf("stage-%d", i)), w.target(fmt.Sprintf("%d", i))
	}
	var all sync.WaitGroup
	errs := make(chan error, 1000)
	twice := func(f func() error) {
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				for {
					err := f()
					if errors.Is(err, ErrBusy) {
						continue
					}
					if err != nil {
						errs <- err
					}
					return
				}
			})
		}
		both.Wait()
	}
	for i := range stages {
		all.Go(func() {
			name := fmt.Sprintf("v%d", i)
			id := w.cfg.volumeID(name)
			twice(func() error {
				_, err := w.m.Create(ctx, CreateRequest{Name: name, Required: 8 << 20, Capabilities: []Capability{mounted}})
				return err
			})
			twice(func() error { return w.m.Stage(ctx, StageRequest{ID: id, Path: stages[i], Capability: mounted}) })
			twice(func() error {
				return w.m.Publish(ctx, PublishRequest{ID: id, Staging: stages[i], Target: targets[i], Capability: mounted})
			})
			twice(func() error {
				_, err := w.m.Snapshot(ctx, SnapshotRequest{Name: name, Volume: id})
				return err
			})
			twice(func() error { return w.m.Unpublish(ctx, id, targets[i]) })
			twice(func() error { return w.m.Unstage(ctx, id, stages[i]) })
			twice(func() error { return w.m.DeleteSnapshot(ctx, w.cfg.snapshotID(name)) })
			twice(func() error { return w.m.Delete(ctx, id) })
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	w.clean()
}

// A stuck verb holds up its own volume only, and the one that waits is told which
// verb, which step, since when.
func TestRootStuckVerbNamesItself(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	a, b := w.create("a"), w.create("b")
	reached, free := make(chan struct{}), make(chan struct{})
	var stuck atomic.Bool
	w.point = func(verb, step string) error {
		if step == "attach" {
			if stuck.CompareAndSwap(false, true) {
				close(reached)
				<-free
			}
		}
		return nil
	}
	done := make(chan error)
	stage := w.path("stage-a")
	go func() { done <- w.m.Stage(ctx, StageRequest{ID: a.ID, Path: stage, Capability: mounted}) }()
	<-reached
	w.use(b.ID, "b")
	w.release(b.ID, "b")
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	var busy *BusyError
	if err := w.m.Delete(short, a.ID); !errors.As(err, &busy) || busy.Verb != "stage volume" || busy.Step != "attach" {
		t.Errorf("error: %v", err)
	}
	if ops := w.m.Operations(); !slices.ContainsFunc(ops, func(o Operation) bool { return o.ID == a.ID && o.Step == "attach" }) {
		t.Errorf("operations: %+v", ops)
	}
	close(free)
	w.ok(<-done)
	w.ok(w.m.Unstage(ctx, a.ID, stage))
}

// A pool that is being measured, which may take long, and mkfs that hang hold up those who
// ask for space or make a file system, and nobody else.
func TestRootUnrelatedGoOn(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v, fresh := w.create("a"), w.create("fresh")
	w.use(v.ID, "a")
	w.release(v.ID, "a")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage-a"), Capability: mounted}))

	for range cap(w.m.turns) { // as many mkfs as may go at once
		w.m.turns <- struct{}{}
	}
	p := w.m.pools["p"]
	p.books.Lock()
	created := make(chan error, 1)
	go func() {
		_, err := w.m.Create(ctx, CreateRequest{Name: "late", Required: testBytes, Capabilities: []Capability{mounted}})
		created <- err
	}()
	for range 3 {
		w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: w.path("stage-a"), Target: w.target("a"), Capability: mounted}))
		w.ok(w.m.Unpublish(ctx, v.ID, w.target("a")))
	}
	w.ok(w.m.Unstage(ctx, v.ID, w.path("stage-a")))
	// Its turn does not come, and it goes all the same.
	w.ok(w.m.Stage(ctx, StageRequest{ID: fresh.ID, Path: w.path("stage-fresh"), Capability: mounted}))
	select {
	case err := <-created:
		t.Errorf("created while the pool is measured: %v", err)
	default:
	}
	p.books.Unlock()
	w.ok(<-created)
	w.ok(w.m.Unstage(ctx, fresh.ID, w.path("stage-fresh")))
}

// Records that are written at once are all in the file, and a later one wins.
func TestStateWrittenTogether(t *testing.T) {
	db, err := openDB(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	s := newStateStore(db)
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			for n := range 20 {
				err := s.update(fmt.Sprint(i), func(st *attachState) { st.Frozen = fmt.Sprint(n) })
				if err != nil {
					t.Error(err)
				}
			}
			if i%2 == 1 {
				if err := s.update(fmt.Sprint(i), func(st *attachState) { *st = attachState{} }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	again := newStateStore(db)
	if err := again.open(); err != nil {
		t.Fatal(err)
	}
	for _, from := range []*stateStore{s, again} {
		list, err := from.all()
		if err != nil || len(list) != 25 {
			t.Errorf("%d records, %v", len(list), err)
		}
		for _, st := range list {
			if st.Frozen != "19" {
				t.Errorf("record %+v", st)
			}
		}
	}
}
