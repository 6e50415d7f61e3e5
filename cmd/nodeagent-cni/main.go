// SPDX-License-Identifier: Apache-2.0

// Command nodeagent-cni is the CNI plugin of nodeagent: it asks the daemon.
package main

import (
	"os"

	"github.com/nodeagent/nodeagent/cni/shim"
)

// version is set at link time.
var version = "development"

func main() {
	code := shim.Run(shim.Process{
		Getenv: os.Getenv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Build: "nodeagent-cni " + version + ": the CNI plugin of nodeagent",
	})
	os.Exit(code)
}
