// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// restartDelay is how long a program that ended stays down, as under systemd's
// RestartSec; one that ends loopLimit times running within loopTime is given up.
const (
	restartDelay = 500 * time.Millisecond
	loopLimit    = 8
	loopTime     = 3 * time.Second
)

// Proc is a long-running program in a box. With Restart it is started again
// whenever it ends by itself, as systemd would.
type Proc struct {
	Name    string
	Log     string
	Restart bool

	box  *Box
	argv []string
	env  []string
	gone chan struct{} // closed when the program is down for good
	quit chan struct{} // closed when it shall not come back

	mu     sync.Mutex // guards what follows
	cmd    *exec.Cmd
	starts int
	err    error // why it is down
	ended  bool  // quit is closed
}

// procSpec says what to run; Env is added to the harness's own environment.
type procSpec struct {
	Name    string
	Argv    []string
	Env     []string
	Log     string
	Restart bool
}

// Spawn starts a long-running program in the box, its output in the log file.
func (b *Box) Spawn(s procSpec) (*Proc, error) {
	p := &Proc{
		Name: s.Name, Log: s.Log, Restart: s.Restart, box: b, argv: s.Argv,
		env: append(os.Environ(), s.Env...), gone: make(chan struct{}), quit: make(chan struct{}),
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	b.procs = append(b.procs, p)
	go p.attend()
	return p, nil
}

func (p *Proc) start() error {
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(p.argv[0], p.argv[1:]...) //nolint:noctx // a daemon: ends by Stop or with its box
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := p.box.Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = cmd
	p.starts++
	return nil
}

// attend waits for the program to end and starts it again if it should.
func (p *Proc) attend() {
	defer close(p.gone)
	for short := 0; ; {
		p.mu.Lock()
		cmd := p.cmd
		p.mu.Unlock()
		begun := time.Now()
		err := cmd.Wait()
		if short++; time.Since(begun) > loopTime {
			short = 0
		}
		if err == nil {
			err = errors.New("exit status 0")
		}
		p.mu.Lock()
		p.err = fmt.Errorf("%s ended: %w", p.Name, err)
		p.mu.Unlock()
		if !p.Restart || short == loopLimit {
			return
		}
		select {
		case <-p.quit:
			return
		case <-time.After(restartDelay):
		}
		if err := p.start(); err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			return
		}
	}
}

func (p *Proc) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended {
		p.ended = true
		close(p.quit)
	}
}

// PID is the process id of the program's present incarnation, as the machine sees it, and
// how often it has been started.
func (p *Proc) PID() (pid, starts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid, p.starts
}

// Signal sends a signal to the program; with Restart it comes back after its end.
func (p *Proc) Signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Signal(sig)
}

// Stop ends the program for good: SIGTERM, and SIGKILL when ctx ends first.
func (p *Proc) Stop(ctx context.Context) error {
	p.abandon()
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		err := p.Signal(unix.SIGKILL)
		<-p.gone
		return errors.Join(fmt.Errorf("stop %s: did not end on SIGTERM: %w", p.Name, ctx.Err()), err)
	}
}

// Down is nil while the program runs or is about to be started again.
func (p *Proc) Down() error {
	select {
	case <-p.gone:
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Errorf("%w; the end of %s:\n%s", p.err, p.Log, Tail(p.Log, 15))
	default:
		return nil
	}
}

// Tail returns the last lines of a file, indented for a report.
func Tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "    " + err.Error()
	}
	all := strings.Split(string(bytes.TrimRight(data, "\n")), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}

// WaitFor polls cond until it is nil or ctx ends; the error then is cond's last.
func WaitFor(ctx context.Context, cond func(context.Context) error) error { return waitFor(ctx, cond) }

// waitFor polls cond until it is nil; the error at ctx's end is cond's last. A
// program that is down ends the wait at once.
func waitFor(ctx context.Context, cond func(context.Context) error, procs ...*Proc) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		now := cond(ctx)
		if now == nil {
			return nil
		}
		if err == nil || ctx.Err() == nil {
			err = now // not what ctx's end did to the last try
		}
		for _, p := range procs {
			if down := p.Down(); down != nil {
				return down
			}
		}
		select {
		case <-ctx.Done():
			out := fmt.Errorf("%w; at last: %w", context.Cause(ctx), err)
			for _, p := range procs {
				out = fmt.Errorf("%w\nthe end of %s:\n%s", out, p.Log, Tail(p.Log, 10))
			}
			return out
		case <-tick.C:
		}
	}
}
