// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"
)

// The OCI runtime's start returns when its process in the container goes on, and that becomes the container's program a moment
// later. Until then others in the container may not look at it: a hook that follows the start at once and writes to
// /proc/1/fd/1 is refused. An exec by the OCI runtime takes longer than that moment; ours may not.
const (
	programTries = 200
	programPause = 5 * time.Millisecond
)

// noExec is the kernel's flag of a process that has not become another program since its fork (PF_FORKNOEXEC).
const noExec = 0x40

// awaitProgram waits, not for ever, until the container's first process is the container's program. One that CRIU made
// never becomes one.
func (c *container) awaitProgram(ctx context.Context, pid int) {
	if c.init.restore != nil || c.runs.Load() {
		return
	}
	for range programTries {
		if !forked(pid) {
			break
		}
		select {
		case <-time.After(programPause):
		case <-ctx.Done():
			return
		}
	}
	c.runs.Store(true)
}

// forked says whether a process is what its parent was.
func forked(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false // it has gone
	}
	// The name, in parentheses, may hold anything. The flags are the seventh field after it.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&noExec != 0
}
