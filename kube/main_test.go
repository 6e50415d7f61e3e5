// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/kube/kubetest"
)

var shared kubetest.Shared

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }
