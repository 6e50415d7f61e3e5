// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

const (
	small = 64 << 20
	plain = "/var/lib/bench/plain"
	// quietTime is how long those who have nothing to do with it are measured alone, and
	// writePause what one of them waits between its writes, as a database's log does.
	quietTime  = 3 * time.Second
	writePause = time.Millisecond
)

// many makes volumes at once, again and again, and looks how those fare who have nothing
// to do with it: a pod that writes to its volume, a file beside the pool for what the disk
// itself does to writers, and another volume's publishing.
func (o *Options) many(ctx context.Context, r *lab.Run, d *driver) error {
	written, err := d.inUse(ctx, "written")
	if err != nil {
		return err
	}
	other, err := d.inUse(ctx, "other")
	if err != nil {
		return err
	}
	if err := other.unpublish(ctx); err != nil {
		return err
	}
	if err := o.watched(ctx, r, d, written, other); err != nil {
		return err
	}
	return errors.Join(written.unpublish(ctx), written.unstage(ctx), written.remove(ctx), other.unstage(ctx), other.remove(ctx))
}

func (o *Options) watched(ctx context.Context, r *lab.Run, d *driver, written, other *volume) (retErr error) {
	var all []*bystander
	for _, side := range []struct{ name, path string }{{writeVolume, filepath.Join(written.target(), "log")}, {writeFile, plain}} {
		w, err := openWriter(d.box.Path(side.path))
		if err != nil {
			return err
		}
		defer func() { retErr = errors.Join(retErr, w.close()) }()
		all = append(all, &bystander{name: side.name, pause: writePause, do: w.write})
	}
	all = append(all, &bystander{name: publishOther, do: func() error { return other.publish(ctx) }, undo: func() error { return other.unpublish(ctx) }})
	return bystand(ctx, all, r, func() error { return o.floods(ctx, r, d) })
}

// bystand runs the bystanders alone, and then while work is done.
func bystand(ctx context.Context, all []*bystander, r *lab.Run, work func() error) error {
	err := meanwhile(ctx, all, alone, func() error {
		timer := time.NewTimer(quietTime)
		defer timer.Stop()
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if err := meanwhile(ctx, all, flooded, work); err != nil {
		return err
	}
	for _, b := range all {
		for _, when := range []string{flooded, alone} { // the last is what the others are compared with
			for _, d := range b.took[when] {
				r.Area.Duration(GroupBystanders, b.name, when, d)
			}
		}
	}
	return nil
}

// inUse makes, stages and publishes a small volume.
func (d *driver) inUse(ctx context.Context, name string) (*volume, error) {
	v, err := d.create(ctx, "ext4", name, small)
	if err != nil {
		return nil, err
	}
	if err := v.stage(ctx); err != nil {
		return nil, err
	}
	return v, v.publish(ctx)
}

func (o *Options) floods(ctx context.Context, r *lab.Run, d *driver) error {
	for i := range o.Floods {
		took, volumes, err := o.atOnce(ctx, d)
		if err != nil {
			return err
		}
		r.Area.Duration(groupMany, fmt.Sprintf("create, stage and publish %d", o.Many), lab.Nodeagent, took)
		begin := time.Now()
		err = each(volumes, func(v *volume) error {
			return errors.Join(v.unpublish(ctx), v.unstage(ctx), v.remove(ctx))
		})
		if err != nil {
			return err
		}
		r.Area.Duration(groupMany, fmt.Sprintf("unpublish, unstage and delete %d", o.Many), lab.Nodeagent, time.Since(begin))
		r.Progress("volumes at once", i+1, o.Floods)
	}
	return nil
}

func (o *Options) atOnce(ctx context.Context, d *driver) (time.Duration, []*volume, error) {
	volumes := make([]*volume, o.Many)
	for i := range volumes {
		volumes[i] = &volume{d: d, name: fmt.Sprint("many-", i)}
	}
	begin := time.Now()
	err := each(volumes, func(v *volume) error {
		made, err := d.create(ctx, "ext4", v.name, small)
		if err != nil {
			return err
		}
		*v = *made
		if err := v.stage(ctx); err != nil {
			return err
		}
		return v.publish(ctx)
	})
	return time.Since(begin), volumes, err
}

func each(volumes []*volume, f func(*volume) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(volumes))
	for i, v := range volumes {
		wg.Go(func() { errs[i] = f(v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// bystander does one thing again and again; undo, if any, is not timed.
type bystander struct {
	name     string
	pause    time.Duration
	do, undo func() error
	took     map[string][]time.Duration
}

// meanwhile runs work, and the bystanders as long as it takes.
func meanwhile(ctx context.Context, all []*bystander, when string, work func() error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, b := range all {
		wg.Go(func() { errs[i] = b.run(ctx, when) })
	}
	err := work()
	stop()
	wg.Wait()
	return errors.Join(err, errors.Join(errs...))
}

func (b *bystander) run(ctx context.Context, when string) error {
	if b.took == nil {
		b.took = map[string][]time.Duration{}
	}
	tick := time.NewTicker(max(b.pause, time.Microsecond))
	defer tick.Stop()
	for ctx.Err() == nil {
		begin := time.Now()
		err := b.do()
		b.took[when] = append(b.took[when], time.Since(begin))
		if err == nil && b.undo != nil {
			err = b.undo()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// writer overwrites a file block by block, each on stable storage before the next.
type writer struct {
	f   *os.File
	buf []byte // page-aligned, for direct I/O
	at  int64
}

const (
	block    = 4096
	fileSize = 8 << 20
)

func openWriter(path string) (*writer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		return nil, err
	}
	buf, err := unix.Mmap(-1, 0, block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map a block: %w", err), f.Close())
	}
	w := &writer{f: f, buf: buf}
	for range fileSize / block { // so that later writes find their blocks
		if _, err := f.WriteAt(buf, w.at); err != nil {
			return nil, errors.Join(err, w.close())
		}
		w.at += block
	}
	return w, f.Sync()
}

func (w *writer) write() error {
	w.at = (w.at + 7*block) % fileSize
	if _, err := w.f.WriteAt(w.buf, w.at); err != nil {
		return err
	}
	return unix.Fdatasync(int(w.f.Fd()))
}

func (w *writer) close() error {
	return errors.Join(w.f.Close(), os.Remove(w.f.Name()), unix.Munmap(w.buf))
}
