// SPDX-License-Identifier: Apache-2.0

package podinit

import _ "embed"

//go:embed podinit_arm64.bin
var binary []byte
