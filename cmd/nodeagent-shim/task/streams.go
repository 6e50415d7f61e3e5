// SPDX-License-Identifier: Apache-2.0

package task

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cri/logs"
	"github.com/nodeagent/nodeagent/cri/shim/link"
)

// stdio are a process's standard streams.
//
// The output of a container with a log goes through pipes of ours. Everything else is opened and handed to the process itself:
// no copy is made here, and a reader that goes away ends the writer instead of blocking it.
type stdio struct {
	// child are the ends the process inherits, ours only until it has them.
	child oci.Stdio
	// begin are the copies to start; pumps counts those that run.
	begin []func()
	pumps sync.WaitGroup

	mu sync.Mutex // guards what follows
	// ours are our ends; closing them ends the copies.
	ours []*os.File
	// input is our end of the process's stdin, when there is one.
	input *os.File
	// console is the process's terminal.
	console *os.File
}

func (s *stdio) keep(f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ours = append(s.ours, f)
}

// run starts the copies that wait for it.
func (s *stdio) run() {
	for _, fn := range s.begin {
		s.pumps.Go(fn)
	}
	s.begin = nil
}

// release closes the ends that the process has inherited.
func (s *stdio) release() {
	for i, f := range s.child {
		if f != nil {
			_ = f.Close()
		}
		s.child[i] = nil
	}
}

// drain waits until all output was read, as it is when the last process that holds the other end has gone.
func (s *stdio) drain(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		s.pumps.Wait()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// ended is called when the process has ended: nobody reads its input any more.
func (s *stdio) ended() { s.closeStdin() }

func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.input != nil {
		_ = s.input.Close()
		s.input = nil
	}
}

func (s *stdio) close() {
	s.release()
	s.closeStdin()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.ours {
		_ = f.Close()
	}
	s.ours, s.console = nil, nil
}

func (s *stdio) resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.console == nil {
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	raw, err := s.console.SyscallConn()
	if err != nil {
		return err
	}
	size := &unix.Winsize{Col: uint16(width), Row: uint16(height)} //nolint:gosec // terminals are not that large
	cerr := raw.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
	return errors.Join(cerr, err)
}

// openOutput opens the log of a container whose output is a URI of ours, and the pod's socket.
func (c *container) openOutput(r *request) error {
	c.hub = newHub()
	out, ok, err := link.ParseOutput(r.Out)
	if !ok {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if c.log, err = logs.Open(out.Log, logs.Options{MaxSize: out.MaxSize}); err != nil {
		return err
	}
	return c.s.ServeLinks(out.Dir)
}

// open opens the process's streams; with a terminal it returns the socket on which that arrives.
func (p *process) open() (*consoleSocket, error) {
	if p.terminal {
		return newConsoleSocket(p.c.bundle)
	}
	if p.exec == "" && p.c.log != nil {
		return nil, p.openPiped()
	}
	return nil, p.openAll()
}

// openPiped makes the pipes of a container that has a log.
func (p *process) openPiped() error {
	for i, stream := range []logs.Stream{logs.Stdout, logs.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("make pipe: %w", err)
		}
		p.io.keep(r)
		p.io.child[i+1] = w
		tee := p.c.hub.output(byte(i + 1)) //nolint:gosec // 1 or 2, the numbers of link's streams
		p.io.begin = append(p.io.begin, func() { _ = p.c.log.Pump(stream, r, tee) })
	}
	once, ok := link.ParseInput(p.stdin)
	if !ok {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	p.io.child[0] = r
	p.io.mu.Lock()
	p.io.input = w
	p.io.mu.Unlock()
	p.c.hub.setInput(w, once, p.io.closeStdin)
	return nil
}

// openAll opens the streams for the process itself.
func (p *process) openAll() error {
	for i, path := range []string{p.stdin, p.stdout, p.stderr} {
		f, err := openDirect(path, i)
		if err != nil {
			p.io.close()
			return err
		}
		p.io.child[i] = f
	}
	return nil
}

// openDirect opens a FIFO or a file for the process itself. Its end must wait in the usual way, so the flag that keeps open
// from waiting is taken off again.
func openDirect(path string, fd int) (*os.File, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // nothing means /dev/null
	}
	flags := unix.O_WRONLY
	if fd == 0 {
		flags = unix.O_RDONLY
	}
	if file, ok := strings.CutPrefix(path, "file://"); ok {
		path, flags = file, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT
	} else if strings.Contains(path, "://") {
		return nil, fmt.Errorf("stream %q: %w", path, errdefs.ErrNotImplemented)
	}
	n, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err == unix.ENXIO {
		// Nobody reads yet: hold it open for both, as containerd's own shim does.
		n, err = unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open stream %s: %w", path, err)
	}
	if err := unix.SetNonblock(n, false); err != nil {
		_ = unix.Close(n)
		return nil, fmt.Errorf("open stream %s: %w", path, err)
	}
	return os.NewFile(uintptr(n), path), nil
}

// adopt takes our end of the process's terminal and begins to copy.
func (p *process) adopt(console *os.File) error {
	p.io.keep(console)
	p.io.mu.Lock()
	p.io.console = console
	p.io.mu.Unlock()
	if p.exec == "" && p.c.log != nil {
		p.io.begin = append(p.io.begin, func() { _ = p.c.log.Pump(logs.Stdout, console, p.c.hub.output(link.Stdout)) })
		if once, ok := link.ParseInput(p.stdin); ok {
			p.c.hub.setInput(console, once, func() {})
		}
		p.io.run()
		return nil
	}
	if p.stdout != "" {
		out, err := os.OpenFile(p.stdout, os.O_RDWR|unix.O_NONBLOCK, 0)
		if w, werr := os.OpenFile(p.stdout, os.O_WRONLY|unix.O_NONBLOCK, 0); werr == nil && err == nil {
			_ = out.Close()
			out = w
		}
		if err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		p.io.begin = append(p.io.begin, func() {
			_, _ = io.Copy(out, console)
			_ = out.Close()
			_, _ = io.Copy(io.Discard, console) // a reader that has gone must not block the process
		})
	}
	if p.stdin != "" {
		in, err := os.OpenFile(p.stdin, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open stream: %w", err)
		}
		p.io.keep(in)
		// Not waited for: it ends when the other side or the process does.
		go func() { _, _ = io.Copy(console, in) }()
	}
	p.io.run()
	return nil
}

// consoleSocket is where the OCI runtime sends a process's terminal.
type consoleSocket struct {
	name     string // relative to the bundle
	path     string
	l        *net.UnixListener
	received chan consoleResult
}

type consoleResult struct {
	f   *os.File
	err error
}

// newConsoleSocket listens in the bundle. The bundle's path is too long for a socket's name: we go by an open directory, the
// OCI runtime by its working directory.
func newConsoleSocket(bundle string) (*consoleSocket, error) {
	dir, err := os.Open(bundle)
	if err != nil {
		return nil, fmt.Errorf("listen for terminal: %w", err)
	}
	defer func() { _ = dir.Close() }()
	s := &consoleSocket{name: fmt.Sprintf("pty%d.sock", time.Now().UnixNano()), received: make(chan consoleResult, 1)}
	s.path = filepath.Join(bundle, s.name)
	s.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), s.name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for terminal: %w", err)
	}
	s.l.SetUnlinkOnClose(false)
	go func() {
		f, err := s.accept()
		s.received <- consoleResult{f, err}
	}()
	return s, nil
}

func (s *consoleSocket) accept() (*os.File, error) {
	conn, err := s.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 4096), oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// receive returns the terminal. The OCI runtime has succeeded, so it is there.
func (s *consoleSocket) receive() (*os.File, error) {
	_ = s.l.SetDeadline(time.Now().Add(drainTimeout))
	r := <-s.received
	if r.err != nil {
		return nil, fmt.Errorf("receive terminal: %w", r.err)
	}
	return r.f, nil
}

func (s *consoleSocket) close() {
	_ = s.l.Close()
	_ = os.Remove(s.path)
}
