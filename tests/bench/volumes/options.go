// SPDX-License-Identifier: Apache-2.0

// Package volumes measures volumes: their data path beside a file on the same
// disk, and what a pod waits for.
package volumes

import (
	"flag"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Options say how much is measured.
type Options struct {
	// Rounds is how often each workload has its turn on each side, Turn how long.
	Rounds int
	Turn   time.Duration
	// Verbs is how many volumes one after the other, Many how many at once, Floods how often.
	Verbs, Many, Floods int
	// Settings measures the loop device's settings, too.
	Settings bool
}

// Default is the full measurement.
func Default() Options {
	return Options{Rounds: 4, Turn: 3 * time.Second, Verbs: 20, Many: 100, Floods: 4, Settings: true}
}

// Quick is enough to see that everything works.
func (o *Options) Quick() {
	o.Rounds, o.Turn, o.Verbs, o.Many, o.Floods, o.Settings = 1, time.Second, 3, 10, 1, false
}

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Rounds, "fio-rounds", o.Rounds, "volumes: turns of each workload")
	fs.DurationVar(&o.Turn, "fio-turn", o.Turn, "volumes: length of a turn, in whole seconds")
	fs.IntVar(&o.Verbs, "volumes", o.Verbs, "volumes: volumes one after the other")
	fs.IntVar(&o.Many, "volumes-many", o.Many, "volumes: volumes at once")
	fs.BoolVar(&o.Settings, "fio-settings", o.Settings, "volumes: the settings of a volume's loop device, too")
	fs.IntVar(&o.Floods, "volumes-floods", o.Floods, "volumes: how often as many at once")
}

// GroupDisk holds the data path.
const GroupDisk = "fio, O_DIRECT, ext4"

// groupBtrfs holds the data path of a pool without loop devices, beside a file on the
// same btrfs; groupSettings what a loop device's settings make of it.
const (
	groupBtrfs    = "fio, O_DIRECT, a pool on btrfs"
	groupSettings = "fio, O_DIRECT, ext4, the loop device set otherwise"
)

// GroupBystanders holds those who have nothing to do with volumes made at once.
const GroupBystanders = "what has nothing to do with it"

// What they do, and when.
const (
	writeVolume  = "4 KiB write and fdatasync in a volume"
	writeFile    = "4 KiB write and fdatasync in a file"
	publishOther = "publish of another volume"
	alone        = "alone"
	flooded      = "while many are made and deleted"
)

const (
	groupVerbs = "a volume of 10 GiB"
	groupMany  = "volumes of 64 MiB at once"
)

// Sides of the data path, and pools.
const (
	raw     = "file on the disk"
	onExt4  = "pool on ext4"
	onXFS   = "pool on XFS"
	allOf   = "create, stage and publish"
	publish = "publish"
	snap    = "snapshot"
)

// workloads are what fio does.
func workloads() []workload {
	return []workload{
		{"4 KiB random read, depth 16", "1/s", []string{"--rw=randread", "--bs=4k", "--iodepth=16"}},
		{"4 KiB random write, depth 16", "1/s", []string{"--rw=randwrite", "--bs=4k", "--iodepth=16"}},
		{"1 MiB sequential read", "MB/s", []string{"--rw=read", "--bs=1m", "--iodepth=4"}},
		{"1 MiB sequential write", "MB/s", []string{"--rw=write", "--bs=1m", "--iodepth=4"}},
		{"4 KiB write and fdatasync, depth 1", "1/s", []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fdatasync=1"}},
	}
}

type workload struct {
	name, unit string
	args       []string
}

// newLoop is the kernel whose loop driver issues requests directly.
const newLoop = "6.19"

// stall is how much longer than alone the slowest of a hundred may take before those who
// wait call it a stall: on the machine that this was measured on, two processors are shared
// with a hundred mkfs.
const stall = 20

// Targets are what the issues ask.
func Targets() []figures.Target {
	var out []figures.Target
	for i, w := range workloads() {
		limit := 0.97
		if i == len(workloads())-1 {
			limit = 0.75
			if lab.KernelAtLeast(newLoop) {
				limit = 0.9
			}
		}
		out = append(out, figures.Target{
			Name: w.name + ", to a file", Of: figures.Ratio(GroupDisk, w.name, lab.Nodeagent), Limit: limit, Least: true,
		})
	}
	for _, w := range workloads() {
		out = append(out, figures.Target{
			Name: "pool on btrfs: " + w.name + ", to a file on it", Of: figures.Ratio(groupBtrfs, w.name, lab.Nodeagent), Limit: 0.97, Least: true,
		})
	}
	return append(out,
		figures.Target{Name: "create, stage and publish, pool on ext4", Of: figures.Median(groupVerbs, allOf, onExt4), Unit: "ms", Limit: 120},
		figures.Target{Name: "create, stage and publish, pool on XFS", Of: figures.Median(groupVerbs, allOf, onXFS), Unit: "ms", Limit: 120},
		figures.Target{Name: "publish, pool on ext4", Of: figures.Median(groupVerbs, publish, onExt4), Unit: "ms", Limit: 5},
		figures.Target{Name: "100 volumes at once: " + writeVolume + ", p99, to alone", Of: slowdown(writeVolume), Limit: stall},
		figures.Target{Name: "100 volumes at once: " + publishOther + ", p99, to alone", Of: slowdown(publishOther), Limit: stall},
		figures.Target{Name: "snapshot, pool on XFS", Of: figures.Median(groupVerbs, snap, onXFS), Unit: "ms", Limit: 30},
	)
}

func slowdown(what string) func(*figures.Area) float64 {
	return figures.Over(figures.At(GroupBystanders, what, flooded, 0.99), figures.At(GroupBystanders, what, alone, 0.99))
}
