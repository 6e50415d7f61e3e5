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
	// Verbs is how many volumes one after the other, Many how many at once.
	Verbs, Many int
}

// Default is the full measurement.
func Default() Options { return Options{Rounds: 4, Turn: 3 * time.Second, Verbs: 20, Many: 100} }

// Quick is enough to see that everything works.
func (o *Options) Quick() { o.Rounds, o.Turn, o.Verbs, o.Many = 1, time.Second, 3, 10 }

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Rounds, "fio-rounds", o.Rounds, "volumes: turns of each workload")
	fs.DurationVar(&o.Turn, "fio-turn", o.Turn, "volumes: length of a turn, in whole seconds")
	fs.IntVar(&o.Verbs, "volumes", o.Verbs, "volumes: volumes one after the other")
	fs.IntVar(&o.Many, "volumes-many", o.Many, "volumes: volumes at once")
}

// GroupDisk holds the data path.
const GroupDisk = "fio, O_DIRECT, ext4"

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
	return append(out,
		figures.Target{Name: "create, stage and publish, pool on ext4", Of: figures.Median(groupVerbs, allOf, onExt4), Unit: "ms", Limit: 120},
		figures.Target{Name: "create, stage and publish, pool on XFS", Of: figures.Median(groupVerbs, allOf, onXFS), Unit: "ms", Limit: 120},
		figures.Target{Name: "publish, pool on ext4", Of: figures.Median(groupVerbs, publish, onExt4), Unit: "ms", Limit: 5},
		figures.Target{Name: "snapshot, pool on XFS", Of: figures.Median(groupVerbs, snap, onXFS), Unit: "ms", Limit: 30},
	)
}
