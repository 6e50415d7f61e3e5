// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"errors"
	"fmt"
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
	_, err = b.Run(ctx, `mkdir -p /var/lib/bench/ext4 /var/lib/kubelet/plugins_registry
		for fs in xfs btrfs; do
			mkdir -p /var/lib/bench/$fs
			truncate -s 24G /var/lib/bench/$fs.img
			mkfs.$fs -q /var/lib/bench/$fs.img
			mount -o loop /var/lib/bench/$fs.img /var/lib/bench/$fs
		done
		mkdir -p /var/lib/bench/btrfs/pool`)
	if err != nil {
		return err
	}
	defer func() {
		_, err := b.Run(context.WithoutCancel(ctx), "umount -l /var/lib/bench/xfs /var/lib/bench/btrfs")
		retErr = errors.Join(retErr, err)
	}()
	agent, err := r.Agent(ctx, b, map[string]any{
		"network": map[string]any{"enabled": false},
		"storage": map[string]any{"pools": []any{
			map[string]any{"name": "ext4", "path": "/var/lib/bench/ext4", "backend": "file"},
			map[string]any{"name": "xfs", "path": "/var/lib/bench/xfs", "backend": "file"},
			map[string]any{"name": "btrfs", "path": "/var/lib/bench/btrfs/pool", "backend": "btrfs"},
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
	for _, f := range []func(context.Context, *lab.Run, *driver) error{o.verbs, o.many, o.disk, o.subvolume} {
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
