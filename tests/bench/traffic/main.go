// SPDX-License-Identifier: Apache-2.0

// Package traffic makes packets between two network namespaces and counts
// them: round trips, connections, datagrams and a stream, with raw system calls
// on one processor. The ends are processes of their own (Main), for what is
// measured may depend on a process's cgroup; Server and Driver hold them.
package traffic

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Command is argv[1] of a process that is one end.
const Command = "traffic"

// Main is the process: "serve ADDRESS" answers until its input ends; "drive"
// reads "KIND ADDRESS MILLISECONDS" lines and answers each with a number, or
// with "error" and why.
func Main(args []string) error {
	runtime.LockOSThread()
	debug.SetGCPercent(-1) // it lives for a minute
	if err := pin(); err != nil {
		return err
	}
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 1 && args[0] == "drive":
		return drive(os.Stdin, os.Stdout)
	default:
		return errors.New("usage: bench traffic serve ADDRESS | drive")
	}
}

// pin keeps the thread on the first processor and ahead of others there: both
// ends share it, so that what is counted is the work of a trip and not how the
// scheduler wakes another processor. Not in a real-time class: threads of Go's
// runtime that spin would keep those off that they wait for.
func pin() error {
	var set unix.CPUSet
	set.Set(0)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to a processor: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("take priority: %w", err)
	}
	return nil
}

func drive(in io.Reader, out io.Writer) error {
	kinds := map[string]func(netip.AddrPort, time.Duration) (float64, error){
		RR: roundTrips, CRR: connections, Stream: streaming, UDPRR: datagrams, Reach: new(reacher).reach,
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		answer := "error odd request"
		if f := strings.Fields(lines.Text()); len(f) == 3 && kinds[f[0]] != nil {
			answer = one(kinds[f[0]], f[1], f[2])
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

func one(kind func(netip.AddrPort, time.Duration) (float64, error), addr, millis string) string {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return "error " + err.Error()
	}
	n, err := strconv.Atoi(millis)
	if err != nil {
		return "error " + err.Error()
	}
	v, err := kind(to, time.Duration(n)*time.Millisecond)
	if err != nil {
		return "error " + err.Error()
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
