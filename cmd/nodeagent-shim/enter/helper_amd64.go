// SPDX-License-Identifier: Apache-2.0

package enter

import _ "embed"

//go:embed helper_amd64.bin
var helper []byte
