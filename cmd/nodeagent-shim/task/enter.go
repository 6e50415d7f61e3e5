// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/enter"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cri/shim/link"
)

// CaptureAction is this program's action that follows a container's start to keep its seccomp filter.
const CaptureAction = "capture"

// newEntry returns what makes further processes of the container here, or nil when the OCI runtime is to make them: nobody asked
// for it, it is not runc, or something about the container is not known.
func (c *container) newEntry(r *request) *enter.Container {
	out, ok, err := link.ParseOutput(r.Out)
	if !ok || err != nil || !out.Direct || !c.rt.Runc() || enter.Inherited() {
		return nil
	}
	// <state>/io.containerd.runtime.v2.task/<namespace>/<id>: what is kept is for all containers.
	state := filepath.Dir(filepath.Dir(filepath.Dir(c.bundle)))
	entry, err := enter.Read(enter.Options{
		ID: c.id, Bundle: c.bundle, Runtime: c.rt.Binary, NoKeyring: c.rt.NoKeyring,
		Filters: filepath.Join(state, "nodeagent-shim", "seccomp"), Program: &c.s.program,
	})
	if err != nil {
		return nil
	}
	return entry
}

// enter makes a process without the OCI runtime. enter.ErrUnable when that has to make it; nothing has happened then.
func (p *process) enter(ctx context.Context) (retErr error) {
	if p.c.entry == nil {
		return enter.ErrUnable
	}
	spec, err := enter.ReadProcess(p.spec)
	if err != nil {
		return err
	}
	v := p.c.init.view()
	if v.state == statePaused || spec.Terminal != p.terminal {
		return enter.ErrUnable
	}
	p.c.awaitProgram(ctx, v.pid)
	at := enter.Place{Reaper: p.c.s.deps.Reaper, Init: v.pid, State: p.c.rt.Dir(p.c.id)}
	defer at.Reaper.Starting()()
	defer func() {
		if retErr != nil {
			p.io.close()
		}
	}()
	var terminal *os.File
	if p.terminal {
		var theirs *os.File
		if terminal, theirs, err = p.c.entry.Terminal(spec, at); err != nil {
			return err
		}
		p.io.child = [3]*os.File{theirs, theirs, theirs}
	} else if err := p.openAll(); err != nil {
		return err
	}
	pid, ended, err := p.c.entry.Run(ctx, spec, at, p.io.child)
	p.io.release()
	if err == nil && terminal != nil {
		if err = p.adopt(terminal); err != nil {
			_, _ = at.Reaper.Signal(pid, unix.SIGKILL) // gone is as good
		}
	}
	if err != nil {
		if terminal != nil {
			_ = terminal.Close()
		}
		return err
	}
	p.mu.Lock()
	p.pid = pid
	p.mu.Unlock()
	go p.watch(ended) //nolint:contextcheck // the end of a process belongs to no call
	return nil
}

// capture has the container's seccomp filter kept when it is the first of its kind. It returns when the start can go on; what it
// returns waits for the end. That it fails means that the OCI runtime makes further processes.
func (c *container) capture(ctx context.Context) (done func()) {
	nothing := func() {}
	if c.entry == nil || c.entry.Filter() == nil || c.entry.Filter().Known() {
		return nothing
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nothing
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_, _ = r.Close(), w.Close()
		return nothing
	}
	args := append([]string{"nodeagent-shim", CaptureAction}, c.entry.Filter().Args(c.init.view().pid, c.rt.Binary)...)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Whether it succeeded shows in the file.
		_, _ = c.s.deps.Reaper.Do(ctx, reap.Command{
			Path: "/proc/self/exe", Args: args, Dir: "/", Files: []uintptr{null.Fd(), w.Fd(), null.Fd()},
		})
		_, _ = w.Close(), null.Close()
	}()
	_, _ = r.Read(make([]byte, len(enter.Ready))) // its end is an answer too
	return func() {
		<-ended
		_ = r.Close()
	}
}
