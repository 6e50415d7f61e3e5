// SPDX-License-Identifier: Apache-2.0

// Command nodeagent-shim is the shim of one pod: containerd starts it (runtime type io.containerd.nodeagent.v1, or by its path),
// and it runs the pod's containers with an OCI runtime, writes their CRI logs, serves attach, and tells containerd how they ended.
//
// It speaks containerd's shim protocol v3 without containerd's packages, because there is one such process for each pod: what
// it links is paid for some hundred times on a node.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/enter"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/task"
)

// runtimeName is the runtime type that containerd derives this program's name from when no path is configured.
const runtimeName = "io.containerd.nodeagent.v1"

// version is set by the linker: -X main.version=v1.2.3.
var version = "v0.1.0-dev"

// flags are what containerd passes, together with the environment.
type flags struct {
	namespace, id, bundle, address string
	debug                          bool
	// lifeline says that descriptor 4 is a pipe whose end ends a shim without containers.
	lifeline bool
	// ttrpc is the path of the socket that takes events.
	ttrpc string
}

func main() {
	var f flags
	var showVersion, info bool
	flag.StringVar(&f.namespace, "namespace", "", "containerd's `namespace` of the task")
	flag.StringVar(&f.id, "id", "", "`id` of the task")
	flag.StringVar(&f.bundle, "bundle", "", "bundle `directory`, for delete")
	flag.StringVar(&f.address, "address", "", "`address` of containerd's gRPC socket")
	flag.BoolVar(&f.debug, "debug", false, "write more to containerd's log")
	flag.BoolVar(&f.lifeline, "lifeline", false, "end with the pipe at descriptor 4, unless there is a container by then; used by nodeagent")
	flag.String("publish-binary", "", "not used; events go to $TTRPC_ADDRESS")
	flag.BoolVar(&showVersion, "v", false, "print the version")
	flag.BoolVar(&info, "info", false, "print what the OCI runtime supports")
	flag.Parse()
	f.ttrpc = os.Getenv("TTRPC_ADDRESS")
	// A service manager's socket, of a containerd that is a unit, makes runc hand one of its own to each container.
	err := os.Unsetenv("NOTIFY_SOCKET")
	switch {
	case err != nil:
	case showVersion:
		_, err = fmt.Printf("%s:\n  Version:  %s\n  Go version: %s\n", runtimeName, version, runtime.Version())
	case info:
		err = printInfo(context.Background())
	case flag.Arg(0) == task.CaptureAction:
		err = capture(context.Background(), flag.Args()[1:])
	default:
		err = act(context.Background(), f, flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", runtimeName, err)
		os.Exit(1)
	}
}

// captureTimeout is how long a container may wait for its start and be followed.
const captureTimeout = 10 * time.Second

// capture keeps the seccomp filter of a container that is being started; see task.CaptureAction.
func capture(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%s is run by the shim", task.CaptureAction)
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return fmt.Errorf("process %q: %w", args[0], err)
	}
	// A tracer that ends lets go, whatever it waits for.
	time.AfterFunc(captureTimeout, func() { os.Exit(1) })
	return enter.Capture(ctx, pid, args[1], args[2], os.Stdout)
}

func act(ctx context.Context, f flags, action string) error {
	if f.namespace == "" || f.id == "" {
		return fmt.Errorf("-namespace and -id are needed; this program is run by containerd")
	}
	switch action {
	case "start":
		return start(ctx, f)
	case "delete":
		return remove(ctx, f)
	case "":
		return serve(ctx, f)
	}
	return fmt.Errorf("unknown action %q", action)
}
