// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/task"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

const (
	// defaultSockets is where containerd's own shims put their sockets.
	defaultSockets = "/run/containerd/s"
	// socketRecord is the file in a bundle that names its shim's socket.
	socketRecord = "nodeagent-shim.socket"
	// maxParams bounds what is read from stdin.
	maxParams = 10 << 20
)

// start brings up the shim of the pod, or finds the one that runs already, and prints its address. Its working directory is the bundle.
func start(ctx context.Context, f flags) error {
	dir, err := socketDir()
	if err != nil {
		return err
	}
	group, err := groupOf("config.json", f.id)
	if err != nil {
		return err
	}
	// The same name as containerd's shims give, so that its tools find it.
	sum := sha256.Sum256([]byte(filepath.Join(f.address, f.namespace, group)))
	path := filepath.Join(dir, fmt.Sprintf("%x", sum))
	l, err := listen(ctx, path)
	if err != nil {
		return err
	}
	// For delete, when this shim dies and cannot remove it.
	if err := os.WriteFile(socketRecord, []byte(path), 0o600); err != nil {
		return fmt.Errorf("record socket: %w", err)
	}
	if l != nil {
		if err := spawn(f, l); err != nil {
			_ = os.Remove(path)
			return err
		}
	}
	var m wire.Message
	m.Uint(1, 3) // the version of the task service
	m.String(2, "unix://"+path)
	m.String(3, "ttrpc")
	_, err = os.Stdout.Write(m)
	return err
}

// socketDir reads it from the bootstrap parameters on stdin.
func socketDir() (string, error) {
	raw, err := io.ReadAll(io.LimitReader(os.Stdin, maxParams))
	if err != nil {
		return "", fmt.Errorf("read parameters: %w", err)
	}
	dir := defaultSockets
	err = wire.Read(raw, func(field int, v wire.Value) error {
		if field == 9 && len(v.Bytes) > 0 {
			dir = v.String()
		}
		return nil
	})
	if err != nil {
		// Older containerds send the runtime's options alone, which have nothing for us.
		dir = defaultSockets
	}
	return dir, nil
}

// groupOf is the name under which containers share a shim.
func groupOf(config, id string) (string, error) {
	raw, err := os.ReadFile(config)
	if errors.Is(err, os.ErrNotExist) {
		return id, nil // a sandbox of containerd's Sandbox API has none
	}
	if err != nil {
		return "", fmt.Errorf("read spec: %w", err)
	}
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("read spec: %w", err)
	}
	for _, key := range []string{"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"} {
		if g := s.Annotations[key]; g != "" {
			return g, nil
		}
	}
	return id, nil
}

// listen makes the socket; nil when a living shim has it.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make directory of sockets: %w", err)
	}
	for range 2 {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false)
			if err := os.Chmod(path, 0o600); err != nil {
				return nil, fmt.Errorf("protect socket: %w", err)
			}
			return l, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("listen: %w", err)
		}
		alive, err := expect(ctx, path)
		if alive || err != nil {
			return nil, err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove socket of a dead shim: %w", err)
		}
	}
	return nil, fmt.Errorf("listen on %s: %w", path, unix.EADDRINUSE)
}

// expect asks the shim at path to wait for our container. It is not alive when nobody listens, and as good as dead when it
// is about to end; one that does not answer is an error.
func expect(ctx context.Context, path string) (alive bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c := ttrpc.Client{Address: path}
	defer c.Close()
	service, method, _ := strings.Cut(task.ExpectMethod, "/")
	if _, err = c.Call(ctx, service, method, nil); err == nil {
		return true, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return false, fmt.Errorf("ask the pod's shim: %w", err)
	}
	return false, nil
}

// spawn starts the shim itself with the socket as descriptor 3 and containerd's log pipe as stderr.
func spawn(f flags, l *net.UnixListener) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find myself: %w", err)
	}
	sock, err := l.File()
	if err != nil {
		return fmt.Errorf("pass on socket: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// Opened for both, so that a containerd that goes does not take us along by SIGPIPE; without waiting, so that a full
	// pipe does not stop us.
	stderr, err := os.OpenFile("log", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		stderr = null
	}
	args := []string{self, "-namespace", f.namespace, "-id", f.id, "-address", f.address}
	if f.debug {
		args = append(args, "-debug")
	}
	pid, err := syscall.ForkExec(self, args, &syscall.ProcAttr{
		Dir: "/",
		// One scheduler thread is enough to copy logs, and each costs memory.
		Env:   append(os.Environ(), "GOMAXPROCS=1"),
		Files: []uintptr{null.Fd(), null.Fd(), stderr.Fd(), sock.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	if err := protect(pid); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		return err
	}
	return nil
}

// protect makes the kernel prefer the shim over containerd, our parent, when memory runs out, by as little as possible.
func protect(pid int) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", os.Getppid()))
	if err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	score, err := strconv.Atoi(string(bytes.TrimSpace(raw)))
	if err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	text := strconv.Itoa(min(score+1, 1000))
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(text), 0); err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	return nil
}

// socketPath strips the scheme of an address.
func socketPath(address string) string { return strings.TrimPrefix(address, "unix://") }
