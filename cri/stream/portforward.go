// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// forward connects stream with a TCP port on the loopback of a network
// namespace, until the server behind the port closes or the client goes.
func forward(ctx context.Context, netns string, port int32, stream io.ReadWriter) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward to port %d: not a TCP port", port)
	}
	conn, err := dialIn(ctx, netns, port)
	if err != nil {
		return fmt.Errorf("forward to port %d: %w", port, err)
	}
	defer conn.Close() //nolint:errcheck // both directions have ended
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() {
		// Ends when the client closes or, after return, when the library
		// closes the stream.
		if _, err := io.Copy(conn, stream); err != nil {
			_ = conn.Close()
			return
		}
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(stream, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("forward to port %d: %w", port, err)
	}
	return nil
}

// dialIn dials 127.0.0.1, then ::1, in the namespace at path; an empty path is
// the caller's own namespace.
func dialIn(ctx context.Context, path string, port int32) (*net.TCPConn, error) {
	if path == "" {
		return dialLoopback(ctx, port)
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close() //nolint:errcheck // read-only
	type result struct {
		conn *net.TCPConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so no other code
		// ever runs in the pod's namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter network namespace %s: %w", path, err)}
			return
		}
		conn, err := dialLoopback(ctx, port)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// dialLoopback tries the families one after the other on this goroutine: Go's
// parallel dialing would make the second socket on another thread.
func dialLoopback(ctx context.Context, port int32) (*net.TCPConn, error) {
	var errs []error
	for _, ip := range []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback} {
		network := "tcp6"
		if ip.To4() != nil {
			network = "tcp4"
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, network, net.JoinHostPort(ip.String(), strconv.Itoa(int(port))))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			return tcp, nil
		}
		errs = append(errs, fmt.Errorf("dial %s: not TCP", network), c.Close())
	}
	return nil, errors.Join(errs...)
}
