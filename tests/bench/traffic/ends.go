// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// end is one process.
type end struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err strings.Builder
}

func start(b *lab.Box, netns string, args ...string) (*end, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &end{cmd: exec.Command(self, append([]string{Command}, args...)...)} //nolint:noctx // ends with its input
	e.cmd.Stderr = &e.err
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e.out = bufio.NewScanner(out)
	return e, b.Start(e.cmd, netns)
}

// Close ends the process.
func (e *end) Close() error {
	err := e.in.Close()
	if waitErr := e.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("end of traffic: %w: %s", waitErr, strings.TrimSpace(e.err.String())))
	}
	return err
}

// Serve starts a server in the box, in the network of a pod or, with no netns,
// of the node.
func Serve(b *lab.Box, netns string, at netip.AddrPort) (io.Closer, error) {
	e, err := start(b, netns, "serve", at.String())
	if err != nil {
		return nil, err
	}
	if !e.out.Scan() {
		return nil, fmt.Errorf("serve %s in %s: %w", at, b.Name, errors.Join(e.out.Err(), e.Close()))
	}
	return e, nil
}

// Driver makes traffic from one place.
type Driver struct{ *end }

// Drive starts a driver.
func Drive(b *lab.Box, netns string) (*Driver, error) {
	e, err := start(b, netns, "drive")
	if err != nil {
		return nil, err
	}
	return &Driver{e}, nil
}

// Measure makes traffic of a kind for a while and returns the figure.
func (d *Driver) Measure(kind string, to netip.AddrPort, span time.Duration) (float64, error) {
	if _, err := fmt.Fprintln(d.in, kind, to, span.Milliseconds()); err != nil {
		return 0, fmt.Errorf("ask for traffic: %w", err)
	}
	if !d.out.Scan() {
		return 0, fmt.Errorf("traffic to %s: no answer: %w", to, errors.Join(d.out.Err(), d.Close()))
	}
	text := d.out.Text()
	if why, failed := strings.CutPrefix(text, "error "); failed {
		return 0, fmt.Errorf("%s to %s: %s", kind, to, why)
	}
	return strconv.ParseFloat(text, 64)
}
