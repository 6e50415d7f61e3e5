// SPDX-License-Identifier: Apache-2.0

// Command etcd is the etcd server as its own module publishes it. The module
// keeps its main package in a repository root that the Go proxy does not
// serve, so the few lines of it live here.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
