// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"os"
	"testing"

	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

//nolint:forbidigo // a TestMain ends the test binary with its code
func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		os.Exit(victim())
	}
	os.Exit(mounttest.Main(m))
}
