// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/logs"
	"github.com/nodeagent/nodeagent/cri/store"
	"github.com/nodeagent/nodeagent/cri/stream"
)

// Streams are the standard streams of one container's first process.
type Streams interface {
	// Paths are what the task is made with.
	Paths() containerd.Streams
	// Connected is called when the shim holds its ends.
	Connected() error
	// Attach connects a client until the container's end.
	Attach(ctx context.Context, s stream.Streams) error
	// Reopen opens the log file anew after a rotation.
	Reopen() error
	// Drain returns when all output was read and written, or ctx ends.
	Drain(ctx context.Context) error
	// Close releases the daemon's ends; what is in the pipes stays there.
	Close() error
}

// Opener makes or finds the streams of a container. It is FIFOs that the
// daemon reads for shims that know nothing of logs, and nothing but names for
// a shim that writes them itself.
type Opener interface {
	// Open makes the streams of a container before its task is made.
	Open(c *store.Container, dir string) (Streams, error)
	// Reattach takes up the streams of a running container again.
	Reattach(c *store.Container, dir string) (Streams, error)
}

// Control reaches the process behind the streams.
type Control interface {
	CloseStdin(ctx context.Context, p containerd.Process) error
	ResizeTerminal(ctx context.Context, p containerd.Process, width, height uint32) error
}

// FIFOs are streams that this daemon reads. While it is away the pipes hold
// 64 KiB of each stream, then the container waits.
type FIFOs struct {
	Control Control
	// MaxLogSize is Config.MaxLogSize.
	MaxLogSize int64
}

var _ Opener = FIFOs{}

// Open makes the FIFOs below dir and starts to read them.
func (f FIFOs) Open(c *store.Container, dir string) (Streams, error) { return f.open(c, dir, true) }

// Reattach opens the FIFOs of a running container again.
func (f FIFOs) Reattach(c *store.Container, dir string) (Streams, error) {
	return f.open(c, dir, false)
}

func (f FIFOs) open(c *store.Container, dir string, fresh bool) (_ Streams, retErr error) {
	cfg := c.Config.M
	p := &pipes{dir: dir, paths: containerd.Streams{Terminal: cfg.GetTty(), Stdout: filepath.Join(dir, "stdout")}}
	if c.Stdin {
		p.paths.Stdin = filepath.Join(dir, "stdin")
	}
	if !cfg.GetTty() {
		p.paths.Stderr = filepath.Join(dir, "stderr")
	}
	defer func() {
		if retErr != nil {
			closer(p)
		}
	}()
	var err error
	if p.log, err = logs.Open(c.LogPath, logs.Options{MaxSize: f.MaxLogSize}); err != nil {
		return nil, err
	}
	ctl := stream.Control{StdinOnce: cfg.GetStdinOnce()}
	proc := containerd.Process{ContainerID: c.ID}
	if p.paths.Stdin != "" {
		if p.stdin, err = openFIFO(p.paths.Stdin, unix.O_RDWR, fresh); err != nil {
			return nil, err
		}
		ctl.Stdin = p.stdin
		ctl.CloseStdin = func(ctx context.Context) error {
			return errors.Join(p.stdin.Close(), f.Control.CloseStdin(ctx, proc))
		}
	}
	if cfg.GetTty() {
		ctl.Resize = func(ctx context.Context, s stream.Size) error {
			return f.Control.ResizeTerminal(ctx, proc, uint32(s.Width), uint32(s.Height))
		}
	}
	p.hub = stream.NewHub(ctl)
	if err := p.read(p.paths.Stdout, logs.Stdout, p.hub.Stdout(), fresh); err != nil {
		return nil, err
	}
	if p.paths.Stderr != "" {
		if err := p.read(p.paths.Stderr, logs.Stderr, p.hub.Stderr(), fresh); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// pipes are the open FIFOs of one container.
type pipes struct {
	dir   string
	paths containerd.Streams
	log   *logs.Log
	hub   *stream.Hub
	stdin *os.File

	readers []*os.File
	// keepers are write ends that keep the readers from seeing an end before
	// the shim has opened its own.
	keepers []*os.File
	once    sync.Once
	pumps   sync.WaitGroup
}

var _ Streams = (*pipes)(nil)

// read opens one output FIFO and pumps it into the log and to the clients.
func (p *pipes) read(path string, name logs.Stream, tee io.Writer, fresh bool) error {
	r, err := openFIFO(path, unix.O_RDONLY, fresh)
	if err != nil {
		return err
	}
	p.readers = append(p.readers, r)
	if fresh {
		k, err := openFIFO(path, unix.O_WRONLY, false)
		if err != nil {
			return err
		}
		p.keepers = append(p.keepers, k)
	}
	p.pumps.Go(func() {
		_ = p.log.Pump(name, r, tee) // the log counts what it could not write
	})
	return nil
}

// openFIFO opens without waiting for the other end; reads and writes wait in
// the poller, so that Close interrupts them.
func openFIFO(path string, flags int, fresh bool) (*os.File, error) {
	if fresh {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("replace fifo: %w", err)
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, fmt.Errorf("make fifo %s: %w", path, err)
		}
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo: %w", err)
	}
	return f, nil
}

// Paths returns the FIFOs' paths.
func (p *pipes) Paths() containerd.Streams { return p.paths }

// Connected lets the readers see the end of the output.
func (p *pipes) Connected() error {
	var errs []error
	for _, k := range p.keepers {
		errs = append(errs, k.Close())
	}
	p.keepers = nil
	return errors.Join(errs...)
}

// Attach connects a client.
func (p *pipes) Attach(ctx context.Context, s stream.Streams) error { return p.hub.Attach(ctx, s) }

// Reopen opens the log anew.
func (p *pipes) Reopen() error { return p.log.Reopen() }

// Drain waits for the ends of the output.
func (p *pipes) Drain(ctx context.Context) error { return p.log.Drain(ctx) }

// Close ends the clients and closes all ends and the log.
func (p *pipes) Close() error {
	var errs []error
	p.once.Do(func() {
		errs = append(errs, p.Connected())
		for _, r := range p.readers {
			errs = append(errs, r.Close())
		}
		p.pumps.Wait()
		if p.hub != nil {
			p.hub.Close()
		}
		if p.stdin != nil {
			if err := p.stdin.Close(); !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
		if p.log != nil {
			errs = append(errs, p.log.Close())
		}
	})
	return errors.Join(errs...)
}

// nothing stands for streams that could not be taken up again.
type nothing struct{}

var _ Streams = nothing{}

func (nothing) Paths() containerd.Streams                    { return containerd.Streams{} }
func (nothing) Connected() error                             { return nil }
func (nothing) Reopen() error                                { return nil }
func (nothing) Drain(context.Context) error                  { return nil }
func (nothing) Close() error                                 { return nil }
func (nothing) Attach(context.Context, stream.Streams) error { return os.ErrClosed }
