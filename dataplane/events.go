// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"sync"

	"github.com/nodeagent/nodeagent/dataplane/observe"
)

// eventQueue is how many events wait for a watcher that is busy.
const eventQueue = 1024

// watcher is somebody who looks at events.
type watcher struct {
	newFlows bool // not only what is refused
	queue    chan observe.Event
	ended    chan error // why nothing will come any more
	lost     int        // since the last event that found room; guarded by watchers.mu
}

// watchers share one reader of the kernel's events, which runs while there are any.
type watchers struct {
	mu     sync.Mutex
	all    map[*watcher]bool
	stop   context.CancelFunc // of the reader; nil: none runs
	wanted chan struct{}
}

// Events calls fn for every packet that is dropped or rejected, and with newFlows
// for the first packet of every flow too, until ctx ends. lost is how many events
// there were, since the last one, that fn was too slow to see.
func (d *Dataplane) Events(ctx context.Context, newFlows bool, fn func(e observe.Event, lost int)) error {
	w := &watcher{newFlows: newFlows, queue: make(chan observe.Event, eventQueue), ended: make(chan error, 1)}
	if err := d.watch(w); err != nil {
		return err
	}
	defer d.unwatch(w)
	for {
		select {
		case e := <-w.queue:
			fn(e, d.watchers.takeLost(w))
		case err := <-w.ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *watchers) takeLost(w *watcher) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	lost := w.lost
	w.lost = 0
	return lost
}

func (d *Dataplane) watch(w *watcher) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	d.watchers.all[w] = true
	wake(d.watchers.wanted)
	return d.setWatched()
}

func (d *Dataplane) unwatch(w *watcher) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	delete(d.watchers.all, w)
	if d.started {
		d.setWatched() //nolint:errcheck // at worst events are made that nobody reads
	}
	if len(d.watchers.all) == 0 && d.watchers.stop != nil {
		d.watchers.stop()
	}
}

// setWatched tells the programs whether anybody wants new flows. The caller
// holds mu and watchers.mu.
func (d *Dataplane) setWatched() error {
	on := uint32(0)
	for w := range d.watchers.all {
		if w.newFlows {
			on = 1
		}
	}
	return d.kernel.Watched.Set(on)
}

// rewatch says it to new programs. The caller holds mu.
func (d *Dataplane) rewatch() error {
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	return d.setWatched()
}

// followEvents reads events while somebody looks, until ctx ends.
func (d *Dataplane) followEvents(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-d.watchers.wanted:
			if err := d.readEvents(ctx); err != nil {
				d.endWatchers(err)
			}
		case <-ctx.Done():
		}
	}
	d.endWatchers(ErrNotStarted)
}

// readEvents reads until the last watcher goes.
func (d *Dataplane) readEvents(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	events := d.kernel.Events
	d.watchers.mu.Lock()
	d.watchers.stop = cancel
	none := len(d.watchers.all) == 0
	d.watchers.mu.Unlock()
	d.mu.Unlock()
	if none {
		return nil
	}
	err := observe.Events(ctx, events, d.publish)
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	d.watchers.stop = nil
	if err == nil && len(d.watchers.all) > 0 {
		wake(d.watchers.wanted) // one who came while the last was leaving
	}
	return err
}

func (d *Dataplane) endWatchers(err error) {
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	for w := range d.watchers.all {
		select {
		case w.ended <- errors.Join(errors.New("events have ended"), err):
		default:
		}
	}
}

// publish gives an event to every watcher that asked for its kind, and waits for none.
func (d *Dataplane) publish(e observe.Event) {
	d.watchers.mu.Lock()
	defer d.watchers.mu.Unlock()
	for w := range d.watchers.all {
		if !w.newFlows && !e.Reason.Refused {
			continue
		}
		select {
		case w.queue <- e:
		default:
			w.lost++
		}
	}
}
