// SPDX-License-Identifier: Apache-2.0

package podinit

import _ "embed"

//go:embed podinit_amd64.bin
var binary []byte
