// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/shim/link"
)

// patience is how long a container waits for an attached client that does not read; then the client is dropped.
const patience = 30 * time.Second

// hub connects attached clients with a container's streams.
type hub struct {
	mu      sync.Mutex // guards what follows; held while a client is written to
	clients map[*client]bool
	input   *os.File
	once    bool
	eof     func()
	closed  bool
}

type client struct {
	conn net.Conn
	want [3]bool // by link's stream numbers
}

func newHub() *hub { return &hub{clients: map[*client]bool{}} }

// output returns where a copy of one of the container's streams goes.
func (h *hub) output(stream byte) io.Writer { return hubWriter{h, stream} }

type hubWriter struct {
	h      *hub
	stream byte
}

// Write gives p to all clients of the stream. It never fails: a client that cannot take it is dropped.
func (w hubWriter) Write(p []byte) (int, error) {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	for c := range w.h.clients {
		if !c.want[w.stream] {
			continue
		}
		_ = c.conn.SetWriteDeadline(time.Now().Add(patience))
		if err := link.WriteFrame(c.conn, w.stream, p); err != nil {
			delete(w.h.clients, c)
			_ = c.conn.Close()
		}
	}
	return len(p), nil
}

// setInput names the container's stdin. once closes it, by eof, with the first client's.
func (h *hub) setInput(f *os.File, once bool, eof func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.input, h.once, h.eof = f, once, eof
}

func (h *hub) closeStdin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.input != nil {
		h.eof()
		h.input = nil
	}
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.clients {
		_ = c.conn.Close()
	}
	clear(h.clients)
}

// add enrols a client; false when the container has ended.
func (h *hub) add(c *client) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.clients[c] = true
	return true
}

func (h *hub) remove(c *client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
}

// feed copies a client's frames to the container's stdin until the client ends.
func (h *hub) feed(r io.Reader, wantStdin bool) {
	buf := make([]byte, 4096)
	for {
		stream, p, err := link.ReadFrame(r, buf)
		if err != nil {
			return
		}
		if stream != link.Stdin || !wantStdin {
			continue
		}
		h.mu.Lock()
		input, once := h.input, h.once
		h.mu.Unlock()
		switch {
		case len(p) == 0 && once:
			h.closeStdin()
		case len(p) > 0 && input != nil:
			if _, err := input.Write(p); err != nil {
				return
			}
		}
	}
}

// linkServer answers on a pod's socket.
type linkServer struct {
	s *Service
	l net.Listener
}

// ServeLinks listens for the daemon in a directory, a pod's or the shim's own, once.
func (s *Service) ServeLinks(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links[dir] != nil {
		return nil
	}
	l, err := link.Listen(dir)
	if err != nil {
		return err
	}
	ls := &linkServer{s: s, l: l}
	s.links[dir] = ls
	go ls.serve()
	return nil
}

func (ls *linkServer) close() { _ = ls.l.Close() }

func (ls *linkServer) serve() {
	for {
		conn, err := ls.l.Accept()
		if err != nil {
			return
		}
		go ls.answer(conn)
	}
}

func (ls *linkServer) answer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	var r link.Request
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if !fromRoot(conn) || link.ReadLine(in, &r) != nil {
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if r.Op == link.OpExpect {
		_ = link.WriteLine(conn, response(ls.s.waitForNext()))
		return
	}
	c, err := ls.s.container(r.Container)
	if err != nil || c.log == nil {
		_ = link.WriteLine(conn, link.Response{Error: fmt.Sprintf("container %s is not running here", r.Container), NotRunning: true})
		return
	}
	switch r.Op {
	case link.OpReopen:
		_ = link.WriteLine(conn, response(c.reopen()))
	case link.OpAttach:
		ls.attach(conn, in, c, r)
	default:
		_ = link.WriteLine(conn, link.Response{Error: fmt.Sprintf("unknown operation %q", r.Op)})
	}
}

func response(err error) link.Response {
	if err == nil {
		return link.Response{}
	}
	return link.Response{Error: err.Error()}
}

func (c *container) reopen() error { return c.log.Reopen() }

func (ls *linkServer) attach(conn net.Conn, in io.Reader, c *container, r link.Request) {
	cl := &client{conn: conn, want: [3]bool{link.Stdout: r.Stdout, link.Stderr: r.Stderr}}
	// The answer goes out before the first frame can.
	if link.WriteLine(conn, link.Response{}) != nil || !c.hub.add(cl) {
		return
	}
	defer c.hub.remove(cl)
	c.hub.feed(in, r.Stdin)
}

// fromRoot checks who is at the other end; the socket's mode says the same.
func fromRoot(conn net.Conn) bool {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return false
	}
	root := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = err == nil && cred.Uid == 0
	})
	return err == nil && root
}
