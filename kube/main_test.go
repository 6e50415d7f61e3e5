// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"net/http"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/kube/kubetest"
)

var shared kubetest.Shared

func TestMain(m *testing.M) {
	code := m.Run()
	shared.Close()
	http.DefaultClient.CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}
