// SPDX-License-Identifier: Apache-2.0

package reap

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Signals that glibc keeps for itself (nptl(7)).
const (
	sigCancel = 32
	sigSetXID = 33
)

// DefaultSignals undoes what glibc's posix_spawn(3) leaves in every program that
// make or a service manager starts by it: the library's internal signals ignored.
// What is ignored is inherited over execve(2), also by containers, and package
// os/signal does not handle these two.
func DefaultSignals() error {
	var act [4]uint64 // struct sigaction of rt_sigaction(2): all zero is SIG_DFL
	const setSize = 8 // of the kernel's sigset_t, in bytes
	for _, sig := range []uintptr{sigCancel, sigSetXID} {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, setSize, 0, 0)
		if errno != 0 {
			return fmt.Errorf("reset signal %d: %w", sig, errno)
		}
	}
	return nil
}
