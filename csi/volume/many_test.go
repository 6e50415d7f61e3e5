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
