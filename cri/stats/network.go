// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// link is one interface's counters since it was made.
type link struct {
	name                               string
	rxBytes, rxPackets, rxErrs, rxDrop uint64
	txBytes, txPackets, txErrs, txDrop uint64
}

// primary is the interface whose numbers are the pod's.
const primary = "eth0"

// openNetDev opens the counters of the namespace at path. The descriptor shows
// that namespace for ever and keeps it alive until it is closed; no process in
// the namespace is needed.
func openNetDev(path string) (int, error) {
	ns, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close() //nolint:errcheck // read-only
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so no other code
		// ever runs in the pod's namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{0, fmt.Errorf("enter network namespace %s: %w", path, err)}
			return
		}
		fd, err := open("/proc/thread-self/net/dev")
		if err != nil {
			err = fmt.Errorf("open interface counters of %s: %w", path, err)
		}
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

// parseNetDev parses /proc/net/dev; the loopback interface is left out.
func parseNetDev(b []byte) []link {
	var out []link
	lines(b, func(line []byte) {
		name, rest, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return // the two lines of head have none
		}
		l := link{name: string(bytes.TrimSpace(name))}
		if l.name == "lo" {
			return
		}
		var v [16]uint64
		for i := range v {
			var word []byte
			word, rest = field(rest)
			v[i] = number(word)
		}
		l.rxBytes, l.rxPackets, l.rxErrs, l.rxDrop = v[0], v[1], v[2], v[3]
		l.txBytes, l.txPackets, l.txErrs, l.txDrop = v[8], v[9], v[10], v[11]
		out = append(out, l)
	})
	return out
}
