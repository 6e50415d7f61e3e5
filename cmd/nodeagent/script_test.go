// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"nodeagent": func() { os.Exit(execute(context.Background(), os.Args[1:])) },
	})
}

// TestScripts tries the command line as a person would. Besides testscript's
// own commands there are `code N CMD…`, which wants that exit code, and
// `answers SOCKET`, which waits until something listens there.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir := t.TempDir() // shorter than the script's own, for sockets
			env.Setenv("RUN", dir)
			conf := fmt.Sprintf("apiVersion: nodeagent.dev/v1alpha1\nkind: NodeAgentConfiguration\n"+
				"node: {name: n1, runDir: %s, metrics: \"\"}\n", dir)
			return os.WriteFile(filepath.Join(env.WorkDir, "config.yaml"), []byte(conf), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": cmdCode, "answers": cmdAnswers,
		},
	})
}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N CMD [ARG ...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = fmt.Sprint(exit.ExitCode())
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s: %v", got, args[0], err)
	}
}

func cmdAnswers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: answers SOCKET")
	}
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", args[0])
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-deadline:
			ts.Fatalf("nothing answers: %v", err)
		case <-tick.C:
		}
	}
}
