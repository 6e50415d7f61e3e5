// SPDX-License-Identifier: Apache-2.0

// Command bench measures nodeagent beside its peers, area by area: the same
// machine, the same moment, one turn of each peer after the other, so that a
// machine whose speed drifts slows all alike.
//
//	bench run [flags]   measure, and store JSON, lines for benchstat and charts
//	bench report        print what is stored, with targets and marks
//	bench docs          write what is stored into docs/benchmarks.md
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/tests/bench/plugins"
	"github.com/nodeagent/nodeagent/tests/bench/traffic"
)

const usage = `usage: bench COMMAND [flags]

  run     measure: --only AREA,... --quick --resume (see bench run --help)
  report  print the stored results with targets and marks
  docs    write the stored results into docs/benchmarks.md, with charts
  areas   list the areas`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop) // the second signal ends the program at once
	err := command(ctx, os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		err = nil
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch args[0] {
	case "run":
		return run(ctx, args[1:])
	case "report":
		return report(args[1:])
	case "docs":
		return docs(args[1:])
	case "areas":
		return list()
	case traffic.Command: // a load generator in a node
		return traffic.Main(args[1:])
	case plugins.Command: // a caller of CNI plugins in a node
		return plugins.Main(ctx, args[1:])
	default:
		return errors.New(usage)
	}
}
