// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/shim/link"
)

// TaskSocket is the name of the socket on which a shim that was started here serves tasks, in its pod's directory.
const TaskSocket = "shim.sock"

// Launcher starts the shims of pods while their sandboxes are made. containerd starts a shim by two processes one after the other
// when a container's task is made; a task that names its shim's address needs neither.
//
// A shim that is started here ends by itself when this daemon ends or lets go of it before it has a container. After that it is
// like any other.
type Launcher struct {
	// Containerd is the path of containerd's socket; events go to the one beside it.
	Containerd string
	// Runtime finds a handler's runtime; false when it has not nodeagent's own shim.
	Runtime func(handler string) (containerd.Runtime, bool)
	// SandboxDir is the directory of a sandbox, SharedDir that of the shims of several pods.
	SandboxDir func(id string) string
	SharedDir  string
	Log        *slog.Logger

	sharing sync.Mutex // held while pods enter and leave shared shims

	mu      sync.Mutex // guards waiting
	waiting map[string]*waiting
}

// waiting is a shim that has no container yet.
type waiting struct {
	started chan struct{} // closed when what follows is final
	err     error
	// lifeline is closed to let go of it.
	lifeline *os.File
	gone     chan struct{} // closed when the process has ended
}

// maxSocket is how long a socket's path may be.
const maxSocket = 107

// Prepare begins to start a sandbox's shim. Nothing is lost when that fails: containerd starts one then.
func (l *Launcher) Prepare(ctx context.Context, sandboxID, handler string) {
	rt, ok := l.Runtime(handler)
	if !ok || len(l.socket(sandboxID)) > maxSocket {
		return
	}
	w := &waiting{started: make(chan struct{}), gone: make(chan struct{})}
	l.mu.Lock()
	if l.waiting == nil {
		l.waiting = map[string]*waiting{}
	}
	if l.waiting[sandboxID] != nil {
		l.mu.Unlock()
		return
	}
	l.waiting[sandboxID] = w
	l.mu.Unlock()
	ctx = context.WithoutCancel(ctx) // the sandbox may be made before it
	go func() {
		defer close(w.started)
		if rt.PodsPerShim > 1 {
			w.err = l.share(ctx, w, sandboxID, handler, rt)
		} else {
			w.err = l.start(w, l.SandboxDir(sandboxID), sandboxID, rt)
		}
		if w.err != nil {
			l.Log.DebugContext(ctx, "containerd has to start the pod's shim", "sandbox", sandboxID, "err", w.err)
		}
	}()
}

// Join returns the address of a sandbox's shim for a container that is about to be made in it, or "" when containerd has to find
// or start it.
func (l *Launcher) Join(ctx context.Context, sandboxID, handler string) string {
	for range 3 {
		l.mu.Lock()
		w := l.waiting[sandboxID]
		l.mu.Unlock()
		if w == nil {
			if l.expect(ctx, sandboxID) {
				return l.address(sandboxID)
			}
			l.leave(sandboxID)
			l.Prepare(ctx, sandboxID, handler)
			continue
		}
		select {
		case <-w.started:
		case <-ctx.Done():
			return ""
		}
		select {
		case <-w.gone:
			l.Release(sandboxID) // it was killed; another one takes its place
		default:
			if w.err == nil {
				return l.address(sandboxID)
			}
			l.Release(sandboxID)
			return ""
		}
	}
	return ""
}

// Release lets go of a sandbox's shim, which ends if it has no container of any pod. There may be none.
func (l *Launcher) Release(sandboxID string) {
	l.Joined(sandboxID)
	l.leave(sandboxID)
}

// Joined says that a sandbox's shim has a container: from now on it looks after itself.
func (l *Launcher) Joined(sandboxID string) {
	l.mu.Lock()
	w := l.waiting[sandboxID]
	delete(l.waiting, sandboxID)
	l.mu.Unlock()
	if w == nil {
		return
	}
	<-w.started
	if w.lifeline != nil {
		_ = w.lifeline.Close()
	}
}

// Close lets go of all.
func (l *Launcher) Close() {
	l.mu.Lock()
	ids := make([]string, 0, len(l.waiting))
	for id := range l.waiting {
		ids = append(ids, id)
	}
	l.mu.Unlock()
	for _, id := range ids {
		l.Joined(id)
	}
}

// address is how containerd reaches a sandbox's shim.
func (l *Launcher) address(sandboxID string) string {
	path := l.socket(sandboxID)
	if shared, err := os.Readlink(path); err == nil {
		path = shared // it outlives the sandbox's directory
	}
	return "ttrpc+unix://" + path
}

func (l *Launcher) socket(sandboxID string) string {
	return filepath.Join(l.SandboxDir(sandboxID), TaskSocket)
}

// expect asks a shim that was started here and has a container already to wait for the next one.
func (l *Launcher) expect(ctx context.Context, sandboxID string) bool {
	if _, err := os.Stat(l.socket(sandboxID)); err != nil {
		return false // another one may run, which containerd knows
	}
	return l.expectIn(ctx, filepath.Dir(strings.TrimPrefix(l.address(sandboxID), "ttrpc+unix://")))
}

func (l *Launcher) expectIn(ctx context.Context, dir string) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := link.Dial(ctx, dir)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	var answer link.Response
	err = errors.Join(conn.SetDeadline(time.Now().Add(answerTimeout)), link.WriteLine(conn, link.Request{Op: link.OpExpect}))
	if err == nil {
		err = link.ReadLine(bufio.NewReader(conn), &answer)
	}
	return err == nil && answer.Error == ""
}

// start starts a shim with its socket in a directory, and a pipe that holds it.
func (l *Launcher) start(w *waiting, dir, name string, rt containerd.Runtime) (retErr error) {
	if info, err := os.Stat(l.Containerd + ".ttrpc"); err != nil || info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("containerd's socket for events: %w", errors.Join(err, unix.ENOENT))
	}
	path := filepath.Join(dir, TaskSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace socket: %w", err)
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	sock.SetUnlinkOnClose(false)
	defer func() {
		_ = sock.Close()
		if retErr != nil {
			_ = os.Remove(path)
		}
	}()
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("protect socket: %w", err)
	}
	file, err := sock.File()
	if err != nil {
		return fmt.Errorf("pass on socket: %w", err)
	}
	defer func() { _ = file.Close() }()
	r, lifeline, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make lifeline: %w", err)
	}
	defer func() { _ = r.Close() }()
	if err := l.spawn(w, name, rt, file, r); err != nil {
		_ = lifeline.Close()
		return err
	}
	w.lifeline = lifeline
	return nil
}

func (l *Launcher) spawn(w *waiting, name string, rt containerd.Runtime, sock, lifeline *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	args := []string{rt.Path, "-namespace", containerd.Namespace, "-id", name, "-address", l.Containerd, "-lifeline"}
	p, err := os.StartProcess(rt.Path, args, &os.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), "GOMAXPROCS=1", "TTRPC_ADDRESS="+l.Containerd+".ttrpc"),
		Files: []*os.File{null, null, null, sock, lifeline},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	go func() {
		_, _ = p.Wait() // it outlives us as a rule
		close(w.gone)
	}()
	if err := protect(p.Pid); err != nil {
		_ = p.Kill()
		return err
	}
	return nil
}

// protect makes the kernel prefer the shim over the daemon when memory runs out, by as little as possible.
func protect(pid int) error {
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(min(score+1, 1000))), 0); err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	return nil
}
