// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Proc is a daemon in a box.
type Proc struct {
	Cmd *exec.Cmd
	// Log is its output, on the machine.
	Log string

	once sync.Once
	done chan struct{}
	err  error
}

// Daemon starts a program in the box that runs until Stop, or until the box ends.
func (b *Box) Daemon(log string, env []string, argv ...string) (*Proc, error) {
	if err := os.MkdirAll(filepath.Dir(log), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	p := &Proc{Cmd: exec.Command(argv[0], argv[1:]...), Log: log, done: make(chan struct{})} //nolint:noctx // Stop ends it
	p.Cmd.Env = append(os.Environ(), env...)
	p.Cmd.Stdout, p.Cmd.Stderr = f, f
	if err := b.Start(p.Cmd, ""); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.Cmd.Wait()
		close(p.done)
	}()
	b.procs = append(b.procs, p)
	return p, nil
}

// PID is the process's id as the machine sees it.
func (p *Proc) PID() int { return p.Cmd.Process.Pid }

// Stop ends the daemon with SIGTERM and waits for it.
func (p *Proc) Stop() {
	p.once.Do(func() {
		_ = p.Cmd.Process.Signal(unix.SIGTERM) // it may be gone
		<-p.done
	})
}

// Kill ends the daemon with SIGKILL and waits for it.
func (p *Proc) Kill() {
	p.once.Do(func() {
		_ = p.Cmd.Process.Kill() // it may be gone
		<-p.done
	})
}

// Down is nil while the daemon runs, else an error with the end of its log.
func (p *Proc) Down() error {
	select {
	case <-p.done:
		data, err := os.ReadFile(p.Log)
		if err != nil {
			return errors.Join(p.err, err)
		}
		data = bytes.TrimSpace(data)
		return fmt.Errorf("%s ended: %w: %s", filepath.Base(p.Cmd.Path), p.err, data[max(0, len(data)-2000):])
	default:
		return nil
	}
}

func (b *Box) stop() {
	for _, p := range b.procs {
		p.Kill()
	}
	b.procs = nil
}
