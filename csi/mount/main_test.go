// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"os"
	"testing"

	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

//nolint:forbidigo // a TestMain ends the test binary with its code
func TestMain(m *testing.M) { os.Exit(mounttest.Main(m)) }
