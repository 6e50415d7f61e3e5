// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// gcPercent makes the collector run at half again of what lives, not at
	// twice: a daemon that allocates little pays next to nothing for it.
	gcPercent = 50
	// startPercent is for the time until the first trim: a start reads all that
	// the cluster has, and would collect again and again while it grows (50,000
	// services from nothing: 7.6 s at 50 percent, 3.6 s at 200, on two busy CPUs).
	startPercent = 200
	// The first trim follows what starting needed, later ones what a burst did.
	firstTrim = 20 * time.Second
	trimEvery = 5 * time.Minute
)

// keepSmall holds the daemon's memory to what it uses until ctx ends: free heap
// goes back to the kernel, and so do pages of the program that were touched
// once. (Those stay in the page cache; a page that is used again costs a minor
// fault, and is then no longer the first to be reclaimed.)
func keepSmall(ctx context.Context, log *slog.Logger) {
	ours := os.Getenv("GOGC") == ""
	if ours {
		debug.SetGCPercent(startPercent)
	}
	for t := time.NewTimer(firstTrim); ; t.Reset(trimEvery) {
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if ours {
			debug.SetGCPercent(gcPercent)
		}
		debug.FreeOSMemory()
		if err := releaseProgram(); err != nil {
			log.DebugContext(ctx, "pages of the program stay mapped", "err", err)
		}
	}
}

// releaseProgram unmaps the pages of the program's file. A mapping with pages
// that are no longer the file's (relocations, breakpoints) is left alone.
func releaseProgram() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the program: %w", err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read mappings: %w", err)
	}
	var errs []error
	for _, m := range programMappings(smaps, exe) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno))
		}
	}
	return errors.Join(errs...)
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// programMappings are those of exe that nobody can write to and that hold
// nothing but the file's pages; see proc_pid_smaps(5).
func programMappings(smaps []byte, exe string) []mapping {
	var out []mapping
	var one mapping
	wanted := false
	for lines := bufio.NewScanner(bytes.NewReader(smaps)); lines.Scan(); {
		line := lines.Text()
		var start, end uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %4s", &start, &end, &perms); n == 3 {
			wanted = !strings.Contains(perms, "w") && strings.HasSuffix(line, " "+exe)
			one = mapping{start, end}
			continue
		}
		if kb, ok := strings.CutPrefix(line, "Anonymous:"); ok && wanted && strings.TrimSpace(kb) == "0 kB" {
			out = append(out, one)
		}
	}
	return out
}
