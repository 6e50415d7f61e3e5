// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// race is a file in a volume against a file on the same disk, in turn.
type race struct {
	r           *lab.Run
	d           *driver
	turn        time.Duration
	group       string
	inside, raw string
}

// disk races a volume in an image with a file beside the pool.
func (o *Options) disk(ctx context.Context, r *lab.Run, d *driver) error {
	c := race{r: r, d: d, turn: o.Turn, raw: "/var/lib/bench/file"}
	return c.in(ctx, "ext4", func(v *volume, c race) error {
		c.group = GroupDisk
		if err := c.run(ctx, workloads(), o.Rounds, ""); err != nil || !o.Settings {
			return err
		}
		c.group = groupSettings
		return c.settings(ctx, v)
	})
}

// subvolume races one without a loop device with a file on the same btrfs.
func (o *Options) subvolume(ctx context.Context, r *lab.Run, d *driver) error {
	c := race{r: r, d: d, turn: o.Turn, raw: "/var/lib/bench/btrfs/file"}
	return c.in(ctx, "btrfs", func(_ *volume, c race) error {
		c.group = groupBtrfs
		return c.run(ctx, workloads(), (o.Rounds+1)/2, "")
	})
}

// in makes a volume in a pool and both files, every block written, and removes them afterwards.
func (c race) in(ctx context.Context, pool string, f func(*volume, race) error) error {
	v, err := c.d.create(ctx, pool, "disk-"+pool, 2*gib)
	if err != nil {
		return err
	}
	if err := errors.Join(v.stage(ctx), v.publish(ctx)); err != nil {
		return err
	}
	c.inside = v.target() + "/file"
	for _, file := range []string{c.inside, c.raw} {
		if _, err := c.d.fio(ctx, file, "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"); err != nil {
			return err
		}
	}
	if err := f(v, c); err != nil {
		return err
	}
	return errors.Join(os.Remove(c.d.box.Path(c.raw)), v.unpublish(ctx), v.unstage(ctx), v.remove(ctx))
}

// run has rounds of the workloads; as is added to their names.
func (c race) run(ctx context.Context, all []workload, rounds int, as string, args ...string) error {
	for i := range rounds {
		for j, w := range all {
			for _, s := range []struct{ name, file string }{{lab.Nodeagent, c.inside}, {raw, c.raw}} {
				turn := append([]string{"--time_based", fmt.Sprintf("--runtime=%d", int(c.turn.Seconds()))}, args...)
				res, err := c.d.fio(ctx, s.file, append(turn, w.args...)...)
				if err != nil {
					return err
				}
				value := res.Read.IOPS + res.Write.IOPS
				if w.unit == "MB/s" {
					value = (res.Read.Bytes + res.Write.Bytes) / 1e6
				}
				c.r.Area.Add(c.group, w.name+as, w.unit, s.name, value)
			}
			c.r.Progress(fmt.Sprintf("%s%s, round %d", c.group, as, i+1), j+1, len(all))
		}
	}
	return nil
}

// settings tries what could make a loop device faster, one after the other.
func (c race) settings(ctx context.Context, v *volume) error {
	var st unix.Stat_t
	if err := unix.Stat(c.d.box.Path(v.target()), &st); err != nil {
		return err
	}
	queue := fmt.Sprintf("/sys/dev/block/%d:%d/queue", unix.Major(st.Dev), unix.Minor(st.Dev))
	var small []workload // with requests whose handling counts
	for _, w := range workloads() {
		if w.unit == "1/s" {
			small = append(small, w)
		}
	}
	if err := c.run(ctx, small, 1, ", io_uring", "--ioengine=io_uring"); err != nil {
		return err
	}
	for _, s := range []struct{ knob, value string }{
		{"nomerges", "2"},
		{"rq_affinity", "2"},
		{"rq_affinity", "0"},
		{"wbt_lat_usec", "0"},
		{"iostats", "0"},
		{"nr_requests", "16"},
		{"scheduler", "mq-deadline"},
		{"write_cache", "write through"}, // unsafe: shows what flushes cost
	} {
		err := with(filepath.Join(queue, s.knob), s.value, func() error {
			return c.run(ctx, small, 1, ", "+s.knob+"="+s.value)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// with sets a knob for the time of f.
func with(knob, value string, f func() error) (retErr error) {
	was, err := os.ReadFile(knob)
	if err != nil {
		return err
	}
	before := strings.TrimSpace(string(was))
	if _, chosen, ok := strings.Cut(before, "["); ok { // one of several
		before, _, _ = strings.Cut(chosen, "]")
	}
	if err := os.WriteFile(knob, []byte(value), 0); err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, os.WriteFile(knob, []byte(before), 0)) }()
	return f()
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
