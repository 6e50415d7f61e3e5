// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Args are what Capture needs, for the command line of the process that calls it.
func (f *Filter) Args(pid int, runtime string) []string {
	return []string{fmt.Sprint(pid), runtime, f.path}
}

// Ready is what Capture says when the process may go on.
const Ready = "ready\n"

// Capture follows a process that the OCI runtime has made and that waits for its start, says so, takes the filter that
// it has when its program begins, before the program's first instruction, and keeps it. It belongs into a process of its own: a
// tracer that dies lets go.
func Capture(ctx context.Context, pid int, ociRuntime, path string, ready io.Writer) error {
	runtime.LockOSThread() // tracing belongs to a thread, and the process ends with this
	if err := ptrace(unix.PTRACE_SEIZE, pid, 0, unix.PTRACE_O_TRACEEXEC); err != nil {
		return fmt.Errorf("trace process %d: %w", pid, err)
	}
	if _, err := io.WriteString(ready, Ready); err != nil {
		return err
	}
	if err := awaitExec(pid); err != nil {
		return err
	}
	program, err := filterOf(pid)
	if derr := unix.PtraceDetach(pid); derr != nil {
		err = errors.Join(err, fmt.Errorf("let go of process %d: %w", pid, derr))
	}
	if err != nil {
		return err
	}
	return save(path, program, defaultFlags(ctx, ociRuntime))
}

// awaitExec passes on the process's signals until it has become its program.
func awaitExec(pid int) error {
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WALL, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("follow process %d: %w", pid, err)
		}
		signal := 0
		switch {
		case !ws.Stopped():
			return fmt.Errorf("process %d ended before its start: %w", pid, unix.ESRCH)
		case ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
			return nil
		case int(ws)>>16 != unix.PTRACE_EVENT_STOP:
			signal = int(ws.StopSignal())
		}
		if err := unix.PtraceCont(pid, signal); err != nil {
			return fmt.Errorf("let process %d go on: %w", pid, err)
		}
	}
}

// filterOf reads the one filter of a stopped process.
func filterOf(pid int) ([]byte, error) {
	n, err := getFilter(pid, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("read filter of process %d: %w", pid, err)
	}
	if _, err := getFilter(pid, 1, nil); !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("process %d has several filters: %w", pid, unix.EEXIST)
	}
	const instruction = 8 // bytes
	program := make([]byte, n*instruction)
	if _, err := getFilter(pid, 0, program); err != nil {
		return nil, fmt.Errorf("read filter of process %d: %w", pid, err)
	}
	return program, nil
}

// getFilter returns the number of instructions of a process's filter, the oldest being 0, and copies it when there is space.
func getFilter(pid, index int, into []byte) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(index),
		uintptr(unsafe.Pointer(unsafe.SliceData(into))), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func ptrace(request, pid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// defaultFlags are those that runc loads a filter with whose profile names none: SPEC_ALLOW where its libseccomp knows it.
func defaultFlags(ctx context.Context, ociRuntime string) uint64 {
	raw, err := exec.CommandContext(ctx, ociRuntime, "features").Output()
	if err != nil {
		return 0
	}
	var f struct {
		Linux struct {
			Seccomp struct{ SupportedFlags []string }
		}
	}
	if json.NewDecoder(bytes.NewReader(raw)).Decode(&f) != nil || !slices.Contains(f.Linux.Seccomp.SupportedFlags, "SECCOMP_FILTER_FLAG_SPEC_ALLOW") {
		return 0
	}
	return flagSpecAllow
}

// Inherited says whether this process has a filter of its own, which all its children have and no profile tells of.
func Inherited() bool {
	raw, err := os.ReadFile("/proc/self/status")
	return err != nil || !strings.Contains(string(raw), "\nSeccomp:\t0\n")
}
