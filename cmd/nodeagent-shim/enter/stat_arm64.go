// SPDX-License-Identifier: Apache-2.0

package enter

import "golang.org/x/sys/unix"

// sysFstatat is fstatat(2), which has another name on each architecture.
const sysFstatat = unix.SYS_FSTATAT
