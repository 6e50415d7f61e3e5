// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

const gib = 1 << 30

// Measure starts nodeagent with a pool on the machine's file system and one on
// an XFS in a file, and measures both.
func (o *Options) Measure(ctx context.Context, r *lab.Run) (retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "boxes", "--nodes", "1")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, l.Close()) }()
	b := l.Boxes["node1"]
	_, err = b.Run(ctx, `mkdir -p /var/lib/bench/ext4 /var/lib/bench/xfs /var/lib/kubelet/plugins_registry
		truncate -s 24G /var/lib/bench/xfs.img
		mkfs.xfs -q /var/lib/bench/xfs.img
		mount -o loop /var/lib/bench/xfs.img /var/lib/bench/xfs`)
	if err != nil {
		return err
	}
	defer func() {
		_, err := b.Run(context.WithoutCancel(ctx), "umount -l /var/lib/bench/xfs")
		retErr = errors.Join(retErr, err)
	}()
	agent, err := r.Agent(ctx, b, map[string]any{
		"network": map[string]any{"enabled": false},
		"storage": map[string]any{"pools": []any{
			map[string]any{"name": "ext4", "path": "/var/lib/bench/ext4", "backend": "file"},
			map[string]any{"name": "xfs", "path": "/var/lib/bench/xfs", "backend": "file"},
		}},
	})
	if err != nil {
		return err
	}
	defer agent.Stop()
	d, err := connect(b)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, d.conn.Close()) }()
	for _, f := range []func(context.Context, *lab.Run, *driver) error{o.verbs, o.many, o.disk} {
		if err := f(ctx, r, d); err != nil {
			return err
		}
	}
	return nil
}

func (o *Options) verbs(ctx context.Context, r *lab.Run, d *driver) error {
	const warmup = 1
	for i := range o.Verbs + warmup {
		for _, pool := range []struct{ name, peer string }{{"ext4", onExt4}, {"xfs", onXFS}} {
			took, err := d.life(ctx, pool.name, fmt.Sprint("life-", pool.name, "-", i))
			if err != nil {
				return err
			}
			for _, t := range took {
				if i >= warmup {
					r.Area.Duration(groupVerbs, t.name, pool.peer, t.took)
				}
			}
		}
		r.Progress("volumes one after the other", i+1, o.Verbs+warmup)
	}
	return nil
}

type timing struct {
	name string
	took time.Duration
}

// life is a volume's whole life, with a snapshot where it costs no copy.
func (d *driver) life(ctx context.Context, pool, name string) ([]timing, error) {
	var out []timing
	timed := func(what string, f func() error) error {
		begin := time.Now()
		err := f()
		out = append(out, timing{what, time.Since(begin)})
		return err
	}
	var v *volume
	begin := time.Now()
	err := timed("create", func() (err error) {
		v, err = d.create(ctx, pool, name, 10*gib)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := timed("stage", func() error { return v.stage(ctx) }); err != nil {
		return nil, err
	}
	if err := timed(publish, func() error { return v.publish(ctx) }); err != nil {
		return nil, err
	}
	out = append(out, timing{allOf, time.Since(begin)})
	if pool == "xfs" {
		var id string
		err := timed(snap, func() (err error) {
			id, err = v.snapshot(ctx)
			return err
		})
		if err == nil {
			err = v.removeSnapshot(ctx, id)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{{"unpublish", v.unpublish}, {"unstage", v.unstage}, {"delete", v.remove}} {
		if err := timed(s.name, func() error { return s.do(ctx) }); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// many makes volumes at once, while one that has nothing to do with them is
// published and unpublished again and again.
func (o *Options) many(ctx context.Context, r *lab.Run, d *driver) error {
	other, err := d.create(ctx, "ext4", "unrelated", 64<<20)
	if err != nil {
		return err
	}
	if err := other.stage(ctx); err != nil {
		return err
	}
	watched, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var watchErr error
	wg.Go(func() {
		for watched.Err() == nil && watchErr == nil {
			begin := time.Now()
			if watchErr = other.publish(ctx); watchErr == nil {
				r.Area.Duration(groupMany, "publish of an unrelated one meanwhile", lab.Nodeagent, time.Since(begin))
				watchErr = other.unpublish(ctx)
			}
		}
	})
	took, volumes, err := o.atOnce(ctx, d)
	stop()
	wg.Wait()
	if err := errors.Join(err, watchErr); err != nil {
		return err
	}
	r.Area.Duration(groupMany, fmt.Sprintf("create, stage and publish %d", o.Many), lab.Nodeagent, took)
	begin := time.Now()
	err = each(volumes, func(v *volume) error {
		return errors.Join(v.unpublish(ctx), v.unstage(ctx), v.remove(ctx))
	})
	r.Area.Duration(groupMany, fmt.Sprintf("unpublish, unstage and delete %d", o.Many), lab.Nodeagent, time.Since(begin))
	return errors.Join(err, other.unstage(ctx), other.remove(ctx))
}

func (o *Options) atOnce(ctx context.Context, d *driver) (time.Duration, []*volume, error) {
	volumes := make([]*volume, o.Many)
	for i := range volumes {
		volumes[i] = &volume{d: d, name: fmt.Sprint("many-", i)}
	}
	begin := time.Now()
	err := each(volumes, func(v *volume) error {
		made, err := d.create(ctx, "ext4", v.name, 64<<20)
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

// disk compares a file in a volume with a file on the disk, in turn.
func (o *Options) disk(ctx context.Context, r *lab.Run, d *driver) error {
	v, err := d.create(ctx, "ext4", "disk", 2*gib)
	if err != nil {
		return err
	}
	if err := errors.Join(v.stage(ctx), v.publish(ctx)); err != nil {
		return err
	}
	sides := []struct{ name, file string }{{lab.Nodeagent, v.target() + "/file"}, {raw, "/var/lib/bench/file"}}
	for _, s := range sides { // every block is written before it is measured
		if _, err := d.fio(ctx, s.file, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"); err != nil {
			return err
		}
	}
	all := workloads()
	for i := range o.Rounds {
		for j, w := range all {
			for _, s := range sides {
				res, err := d.fio(ctx, s.file, append(w.args, "--time_based", fmt.Sprintf("--runtime=%d", int(o.Turn.Seconds())))...)
				if err != nil {
					return err
				}
				value := res.Read.IOPS + res.Write.IOPS
				if w.unit == "MB/s" {
					value = (res.Read.Bytes + res.Write.Bytes) / 1e6
				}
				r.Area.Add(GroupDisk, w.name, w.unit, s.name, value)
			}
			r.Progress(fmt.Sprintf("fio, round %d", i+1), j+1, len(all))
		}
	}
	err = os.Remove(d.box.Path("/var/lib/bench/file"))
	return errors.Join(err, v.unpublish(ctx), v.unstage(ctx), v.remove(ctx))
}

// result is what fio says of a job.
type result struct {
	Read, Write struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
	}
}

func (d *driver) fio(ctx context.Context, file string, args ...string) (*result, error) {
	out, err := d.box.Run(ctx, "fio --name=bench --filename="+file+" --size=1g --direct=1 --ioengine=libaio --output-format=json "+strings.Join(args, " "))
	if err != nil {
		return nil, err
	}
	var res struct {
		Jobs []result `json:"jobs"`
	}
	if i := strings.Index(out, "{"); i > 0 {
		out = out[i:] // a note may come first
	}
	if err := json.Unmarshal([]byte(out), &res); err != nil || len(res.Jobs) != 1 {
		return nil, fmt.Errorf("read fio's report: %w: %.200s", err, out)
	}
	return &res.Jobs[0], nil
}
