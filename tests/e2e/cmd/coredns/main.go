// SPDX-License-Identifier: Apache-2.0

// Command coredns is CoreDNS with the plugins that the cluster's DNS and Kubernetes' own
// tests of it configure; all of them would take minutes to compile.
package main

import (
	"github.com/coredns/coredns/coremain"

	// Plugins register themselves.
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
