// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// runOptions are the command line of run.
type runOptions struct {
	settings *settings
	areas    []area
	out      string
	resume   bool
	config   lab.Config
	// args are what repeats the run, without what chooses areas.
	args []string
}

func parseRun(args []string) (*runOptions, error) {
	o := &runOptions{settings: defaults()}
	if slices.ContainsFunc(args, func(a string) bool { return a == "--quick" || a == "-quick" }) {
		o.settings.quick()
	}
	fs := flag.NewFlagSet("bench run", flag.ContinueOnError)
	only := fs.String("only", "", "areas to measure, separated by commas: "+strings.Join(names(o.settings.areas()), ","))
	fs.Bool("quick", false, "few repetitions: to see that everything works")
	fs.BoolVar(&o.resume, "resume", false, "leave out the areas that this version has measured already")
	fs.StringVar(&o.out, "out", "tests/bench/out", "directory for results")
	verbose := fs.Bool("verbose", false, "show what the clusters say")
	cache := os.Getenv("NODEAGENT_CACHE")
	if cache == "" {
		cache = "/var/cache/nodeagent"
	}
	fs.StringVar(&o.config.Bin, "bin", "bin", "programs of this repository")
	fs.StringVar(&o.config.Tools, "tools", filepath.Join(cache, "bin"), "programs of make deps")
	fs.StringVar(&o.config.Base, "base", "/var/tmp/nodeagent-cluster", "directory for the clusters' files")
	o.settings.flags(fs)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	if *verbose {
		o.config.Log = os.Stderr
	}
	fs.Visit(func(f *flag.Flag) {
		if !slices.Contains([]string{"only", "resume", "out", "verbose", "bin", "tools", "base"}, f.Name) {
			o.args = append(o.args, "--"+f.Name+"="+f.Value.String())
		}
	})
	return o, errors.Join(o.choose(*only), o.absolute(), needRoot())
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("the benchmarks need root: they make namespaces and mounts")
	}
	return nil
}

func (o *runOptions) absolute() error {
	var errs []error
	for _, dir := range []*string{&o.config.Bin, &o.config.Tools, &o.config.Base} {
		abs, err := filepath.Abs(*dir)
		errs = append(errs, err)
		*dir = abs
	}
	return errors.Join(errs...)
}

func (o *runOptions) choose(only string) error {
	all := o.settings.areas()
	if only == "" {
		o.areas = all
		return nil
	}
	for name := range strings.SplitSeq(only, ",") {
		i := slices.Index(names(all), name)
		if i < 0 {
			return fmt.Errorf("--only: %q is none of %s", name, strings.Join(names(all), ", "))
		}
		o.areas = append(o.areas, all[i])
	}
	return nil
}

// run measures area by area. One that fails does not keep the others from
// being measured; what was measured of it is dropped.
func run(ctx context.Context, args []string) error {
	o, err := parseRun(args)
	if err != nil {
		return err
	}
	version := version(ctx, o.config.Bin)
	have, err := figures.Read(o.out, names(o.areas))
	if err != nil {
		return err
	}
	begin := time.Now()
	var errs []error
	for i, a := range o.areas {
		if old := have[a.name]; o.resume && old != nil && old.Version == version && old.Command == o.command(a) {
			fmt.Printf("%s: measured already\n", a.name)
			continue
		}
		fmt.Printf("%s (%d of %d, after %.0f s): %s\n", a.name, i+1, len(o.areas), time.Since(begin).Seconds(), a.title)
		result, err := o.measure(ctx, a, version)
		if err == nil {
			err = errors.Join(result.Write(o.out), show(os.Stdout, a, result))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", a.name, err)
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Printf("%d areas in %.0f s; results in %s\n", len(o.areas)-len(errs), time.Since(begin).Seconds(), o.out)
	return errors.Join(errs...)
}

// command repeats the area.
func (o *runOptions) command(a area) string {
	return fmt.Sprintf("make bench ARGS=\"%s\"", strings.Join(append([]string{"--only " + a.name}, o.args...), " "))
}

func (o *runOptions) measure(ctx context.Context, a area, version string) (_ *figures.Area, retErr error) {
	dir, err := os.MkdirTemp("", "nodeagent-bench-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("%w (logs are in %s)", retErr, dir)
			return
		}
		retErr = os.RemoveAll(dir)
	}()
	r := &lab.Run{Config: o.config, Dir: dir, Area: &figures.Area{
		Name: a.name, Command: o.command(a), Version: version,
		Kernel: lab.Kernel(), CPUs: runtime.NumCPU(), Begin: time.Now().UTC(),
	}}
	if err := a.measure(ctx, r); err != nil {
		return nil, err
	}
	r.Area.Seconds = time.Since(r.Area.Begin).Seconds()
	r.Area.Finish()
	return r.Area, nil
}

// version is that of the program under test.
func version(ctx context.Context, bin string) string {
	out, err := exec.CommandContext(ctx, filepath.Join(bin, "nodeagent"), "version").Output()
	if err != nil {
		return "nodeagent (version unknown)"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
