// SPDX-License-Identifier: Apache-2.0

// Command bench measures CRI runtimes side by side: the same images, the same
// pods, the same machine, one pod of each peer in turn, so that a machine whose
// speed drifts slows all peers alike. It prints a table with ratios to the last
// peer, and writes JSON, lines for benchstat and SVG charts.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
)

// options are the command line.
type options struct {
	peers    []*peer
	work     workload
	n        int
	parallel []int
	density  []int
	churn    int
	out      string
}

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if err := realMain(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func realMain(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	for _, p := range o.peers {
		if err := p.connect(ctx); err != nil {
			return err
		}
		if err := p.pull(ctx, o.work.image); err != nil {
			return err
		}
	}
	r := newReport(o)
	for _, phase := range []func(context.Context, *options, *report) error{
		measureLatency, measureThroughput, measureDensity, measureChurn,
	} {
		if err := phase(ctx, o, r); err != nil {
			return err
		}
	}
	return errors.Join(r.print(os.Stdout), r.write(o.out))
}

func parse(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.Func("peer", "name=socket[,pid[,cgroup]] of a CRI runtime; pid is a process in its namespaces (repeat; ratios are to the last)",
		func(s string) error {
			p, err := parsePeer(s)
			o.peers = append(o.peers, p)
			return err
		})
	fs.StringVar(&o.work.image, "image", "", "image of the measured container")
	fs.StringVar(&o.work.logs, "logs", "/var/log/pods/bench", "log directory inside each peer's mount namespace")
	command := fs.String("command", "echo up; exec sleep 1000000", "shell command of the container; its first line is waited for")
	fs.IntVar(&o.n, "n", 40, "pods for the latency of each verb")
	parallel := fs.String("parallel", "1,2,4,8,16", "numbers of pods started at the same time")
	density := fs.String("density", "0,60,110", "numbers of pods present while lists, stats and memory are measured")
	fs.IntVar(&o.churn, "churn", 0, "pods made and removed at 8 parallel, with the check that nothing is left")
	fs.StringVar(&o.out, "out", "tests/bench/out", "directory for results")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	o.work.command = []string{"/bin/sh", "-c", *command}
	var errs []error
	var err error
	if o.parallel, err = numbers(*parallel); err != nil {
		errs = append(errs, fmt.Errorf("--parallel: %w", err))
	}
	if o.density, err = numbers(*density); err != nil {
		errs = append(errs, fmt.Errorf("--density: %w", err))
	}
	if len(o.peers) == 0 || o.work.image == "" {
		errs = append(errs, errors.New("--peer and --image are needed"))
	}
	return o, errors.Join(errs...)
}

func numbers(list string) ([]int, error) {
	var out []int
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// write stores the report in dir.
func (r *report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return errors.Join(
		r.writeJSON(filepath.Join(dir, "cri.json")),
		r.writeBenchstat(dir),
		r.writeChart(filepath.Join(dir, "cri.svg")),
	)
}
