//go:build conformance

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	_ "k8s.io/kubernetes/test/e2e"      // what `make e2e-conformance` compiles
	_ "k8s.io/kubernetes/test/e2e_node" // what `make e2e-node` compiles
)
