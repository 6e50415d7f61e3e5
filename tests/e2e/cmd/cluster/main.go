// SPDX-License-Identifier: Apache-2.0

// Command cluster starts, shows and ends a Kubernetes cluster on nodeagent in
// namespaces of its own; see package cluster.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

func main() {
	if cluster.Init() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop) // the second signal ends the program at once
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}
