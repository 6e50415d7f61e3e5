// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo terminal that a person would sit at.
type terminal struct {
	t      *testing.T
	master *os.File
	slave  *os.File

	mu   sync.Mutex // guards seen
	seen strings.Builder
}

func openTerminal(t *testing.T, rows, cols uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tty := &terminal{t: t, master: master, slave: slave}
	tty.resize(rows, cols)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(tty, master) })
	t.Cleanup(func() {
		_ = slave.Close()
		_ = master.Close()
		wg.Wait()
	})
	return tty
}

// Write takes what the terminal shows.
func (tty *terminal) Write(p []byte) (int, error) {
	tty.mu.Lock()
	defer tty.mu.Unlock()
	return tty.seen.Write(p)
}

func (tty *terminal) resize(rows, cols uint16) {
	tty.t.Helper()
	if err := unix.IoctlSetWinsize(int(tty.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		tty.t.Fatal(err)
	}
}

// attach makes the terminal the command's own, so that a resize is signalled to it.
func (tty *terminal) attach(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty.slave, tty.slave, tty.slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
}

func (tty *terminal) say(text string) {
	tty.t.Helper()
	if _, err := io.WriteString(tty.master, text); err != nil {
		tty.t.Fatal(err)
	}
}

// interrupt types ^C until another prompt shows. A shell that is about to hand the
// terminal to its child does not notice the first.
func (tty *terminal) interrupt(prompt string) {
	tty.t.Helper()
	before := strings.Count(tty.shown(), prompt)
	eventually(tty.t, 20*time.Second, func(context.Context) error {
		if strings.Count(tty.shown(), prompt) > before {
			return nil
		}
		tty.say("\x03")
		return fmt.Errorf("no prompt in\n%s", tty.shown())
	})
}

func (tty *terminal) shown() string {
	tty.mu.Lock()
	defer tty.mu.Unlock()
	return tty.seen.String()
}

// until waits for a text and returns all that has been shown.
func (tty *terminal) until(text string) string {
	tty.t.Helper()
	eventually(tty.t, 30*time.Second, func(context.Context) error {
		if seen := tty.shown(); !strings.Contains(seen, text) {
			return fmt.Errorf("the terminal does not show %q but\n%s", text, seen)
		}
		return nil
	})
	return tty.shown()
}
