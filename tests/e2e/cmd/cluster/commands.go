// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

const usage = `usage: cluster COMMAND [flags]

  up        start a cluster and keep it until Ctrl-C
  demo      the same with the demo in it
  runtimes  start a node of each runtime, without kubelets, for benchmarks
  boxes     start nodes in which nothing runs, for benchmarks
  registry  serve the tests' images on this machine, whose address 10.99.0.1 has to be there
  conformance  run Kubernetes' own tests: --focus --skip --procs --report --driver
  node-tests   run Kubernetes' tests of a node, with its kubelet: the same flags
  status    show the clusters of this machine
  enter     run a command inside a node: cluster enter [--name NAME] NODE [COMMAND...]
  down      end a cluster and remove what is left of it

flags of up and demo: --name --nodes --runtime --feature-gates --detach --base --tools --bin`

type options struct {
	cluster.Config
	detach bool
	tests  cluster.ConformanceRun
	args   []string
}

func parse(command string, args []string) (*options, error) {
	o := &options{Config: cluster.Default()}
	f := flag.NewFlagSet(command, flag.ContinueOnError)
	f.StringVar(&o.Name, "name", o.Name, "name of the cluster")
	f.IntVar(&o.Nodes, "nodes", o.Nodes, "number of nodes")
	f.StringVar(&o.Runtime, "runtime", o.Runtime, "nodeagent, containerd or both (by turns)")
	f.StringVar(&o.OCI, "oci", "", "runtimes: an OCI runtime to offer beside runc, as handler \"other\"")
	f.BoolVar(&o.PullImages, "pull-images", false, "runtimes: serve the images whose pull is measured")
	f.StringVar(&o.Base, "base", o.Base, "directory for the clusters' files")
	f.StringVar(&o.Tools, "tools", o.Tools, "directory with the programs that make deps builds")
	f.StringVar(&o.Dist, "dist", o.Dist, "directory of make package: its DaemonSet instead of bridge and kube-proxy (with --runtime containerd)")
	f.StringVar(&o.Bin, "bin", o.Bin, "directory with the programs of this repository")
	f.Func("feature-gates", "feature gates of every Kubernetes component: NAME=true,NAME=false", o.gates)
	f.Func("service-option", "one of the agent's dataplane.serviceOptions: NAME=VALUE", func(text string) error {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=VALUE", text)
		}
		if o.ServiceOptions == nil {
			o.ServiceOptions = map[string]string{}
		}
		o.ServiceOptions[name] = value
		return nil
	})
	f.BoolVar(&o.detach, "detach", false, "go on in the background when the cluster is up")
	focus := map[string]string{
		"conformance": `\[sig-(node|network|storage)\].*\[Conformance\]`,
		"node-tests":  `\[NodeConformance\]`,
	}
	if focus[command] != "" {
		o.Name, o.Conformance = command, true
		f.StringVar(&o.tests.Focus, "focus", focus[command], "run the tests whose names match")
		f.StringVar(&o.tests.Skip, "skip", `\[Serial\]|\[Disruptive\]|\[Slow\]`, "leave out those")
		f.IntVar(&o.tests.Procs, "procs", 4, "how many at once")
		f.StringVar(&o.tests.Report, "report", "dist/"+command, "directory for the report")
		f.Func("driver", "conformance: run them with this description of a storage driver, once with each", func(file string) error {
			o.tests.Drivers = append(o.tests.Drivers, file)
			return nil
		})
	}
	if command == "node-tests" {
		// Without a sandbox's container cAdvisor finds no network to report.
		o.FeatureGates = map[string]bool{"PodAndContainerStatsFromCRI": true}
	}
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.args = f.Args()
	return o, o.Validate()
}

func (o *options) gates(text string) error {
	o.FeatureGates = map[string]bool{}
	for kv := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(kv, "=")
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("feature gate %q: %w", kv, err)
		}
		o.FeatureGates[name] = on
	}
	return nil
}

func run(ctx context.Context, args []string) error {
	commands := map[string]func(context.Context, *options) error{
		"up":          func(ctx context.Context, o *options) error { return stay(ctx, o, false) },
		"demo":        func(ctx context.Context, o *options) error { return stay(ctx, o, true) },
		"runtimes":    func(ctx context.Context, o *options) error { return keep(ctx, o, cluster.Runtimes) },
		"boxes":       func(ctx context.Context, o *options) error { return keep(ctx, o, cluster.Boxes) },
		"registry":    func(ctx context.Context, o *options) error { return cluster.ServeImages(ctx, o.Config) },
		"conformance": conformance(cluster.Up, (*cluster.Cluster).RunConformance),
		"node-tests":  conformance(cluster.Alone, (*cluster.Cluster).RunNodeTests),
		"status":      status,
		"enter":       enter,
		"down":        down,
	}
	if len(args) == 0 || commands[args[0]] == nil {
		return errors.New(usage)
	}
	o, err := parse(args[0], args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if o.detach {
		return detach(ctx, args, o)
	}
	return commands[args[0]](ctx, o)
}

// stay keeps a cluster until ctx ends.
func stay(ctx context.Context, o *options, demo bool) (retErr error) {
	o.Progress = cluster.NewProgress(os.Stderr)
	o.Progress.Say("Cluster %s: %d node(s), kubelet on %s", o.Name, o.Nodes, o.Runtime)
	c, err := cluster.Up(ctx, o.Config)
	if err != nil {
		return err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		retErr = errors.Join(retErr, o.Progress.Step("clean up", func() error { return end(cleanup, c) }))
	}()
	if demo {
		if err := c.Demo(ctx); err != nil {
			return err
		}
	}
	// Said first: who waits until it is ready prints what was said.
	o.Progress.Say("\nUp after %.0f s. Use it with\n  export KUBECONFIG=%s\nCtrl-C, or `make stop`, ends it.", o.Progress.Elapsed().Seconds(), c.Kubeconfig)
	if err := c.MarkReady(); err != nil {
		return err
	}
	<-ctx.Done()
	o.Progress.Say("")
	return nil
}

// keep keeps what start makes until ctx ends; others find it by its state file.
func keep(ctx context.Context, o *options, start func(context.Context, cluster.Config) (*cluster.Cluster, error)) (retErr error) {
	o.Progress = cluster.NewProgress(os.Stderr)
	c, err := start(ctx, o.Config)
	if err != nil {
		return err
	}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		retErr = errors.Join(retErr, end(cleanup, c))
	}()
	if err := c.MarkReady(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// conformance runs Kubernetes' own tests on a cluster of their own.
func conformance(
	up func(context.Context, cluster.Config) (*cluster.Cluster, error),
	tests func(*cluster.Cluster, context.Context, cluster.ConformanceRun, io.Writer) error,
) func(context.Context, *options) error {
	return func(ctx context.Context, o *options) (retErr error) {
		report, err := filepath.Abs(o.tests.Report)
		if err != nil {
			return err
		}
		o.tests.Report = report
		o.Progress = cluster.NewProgress(os.Stderr)
		c, err := up(ctx, o.Config)
		if err != nil {
			return err
		}
		defer func() {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
			defer cancel()
			logs := filepath.Join(report, "logs-"+time.Now().Format("150405"))
			retErr = errors.Join(retErr, os.CopyFS(logs, os.DirFS(c.Logs())), end(cleanup, c))
		}()
		return tests(c, ctx, o.tests, os.Stdout)
	}
}

// end ends the cluster and sees that nothing of it is left.
func end(ctx context.Context, c *cluster.Cluster) error {
	traces, err := c.Traces()
	err = errors.Join(err, c.Down(ctx))
	if traces != nil {
		err = errors.Join(err, traces.Left(ctx))
	}
	return err
}

func status(_ context.Context, o *options) error {
	all, err := cluster.List(o.Base)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Println("no cluster")
	}
	for _, s := range all {
		fmt.Println(s)
	}
	return nil
}
