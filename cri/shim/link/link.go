// SPDX-License-Identifier: Apache-2.0

// Package link is how the daemon and a pod's shim speak about the standard streams of a container, beside containerd.
//
// The task is created with a URI instead of FIFOs for its output (Output); the shim then writes the CRI log itself. Each pod has a
// socket on which its shim answers requests: one line of JSON (Request), one line of JSON back (Response), and for an attach
// frames in both directions until one side closes. It uses the standard library only, because the shim links it.
package link

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Scheme marks the stream URIs that only nodeagent's shim understands.
const Scheme = "nodeagent"

// execDirect is the value of Output.Direct in a URI.
const execDirect = "direct"

// SocketName is the pod's socket in its directory.
const SocketName = "io.sock"

// Output says what the shim does with the output of a container.
type Output struct {
	// Log is the path of the CRI log file; empty writes none.
	Log string
	// MaxSize is logs.Options.MaxSize.
	MaxSize int64
	// Dir is the directory with the pod's socket.
	Dir string
	// Direct lets the shim make further processes of the container itself where it can; otherwise the OCI runtime makes all.
	Direct bool
}

// URI is the form in which it travels as the path of stdout (and of stderr).
func (o Output) URI() string {
	q := url.Values{"dir": {o.Dir}}
	if o.MaxSize > 0 {
		q.Set("max", strconv.FormatInt(o.MaxSize, 10))
	}
	if o.Direct {
		q.Set("exec", execDirect)
	}
	return (&url.URL{Scheme: Scheme, Path: "/" + strings.TrimPrefix(o.Log, "/"), RawQuery: q.Encode()}).String()
}

// ParseOutput reads a URI; ok is false when it is something else, a FIFO for example.
func ParseOutput(s string) (o Output, ok bool, err error) {
	if !strings.HasPrefix(s, Scheme+":") {
		return Output{}, false, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return Output{}, true, fmt.Errorf("stream %q: %w", s, err)
	}
	q := u.Query()
	o = Output{Log: u.Path, Dir: q.Get("dir"), Direct: q.Get("exec") == execDirect}
	if o.Log == "/" {
		o.Log = ""
	}
	if text := q.Get("max"); text != "" {
		if o.MaxSize, err = strconv.ParseInt(text, 10, 64); err != nil {
			return Output{}, true, fmt.Errorf("stream %q: max: %w", s, err)
		}
	}
	if !filepath.IsAbs(o.Dir) {
		return Output{}, true, fmt.Errorf("stream %q: dir is not an absolute path", s)
	}
	return o, true, nil
}

// Input is the URI of a container's stdin that the shim keeps open for attached clients; once closes it with the first of them.
func Input(once bool) string {
	if once {
		return Scheme + ":stdin?once=1"
	}
	return Scheme + ":stdin"
}

// ParseInput reads what Input wrote.
func ParseInput(s string) (once, ok bool) {
	return s == Input(true), s == Input(true) || s == Input(false)
}

// The operations of a Request.
const (
	// OpReopen opens the log file anew; it is answered when no more is written to the old one.
	OpReopen = "reopen"
	// OpExpect asks the shim not to end before the next container has come; it belongs to no container.
	OpExpect = "expect"
	// OpAttach turns the connection into frames.
	OpAttach = "attach"
)

// Request is the first line on a connection.
type Request struct {
	Op        string `json:"op"`
	Container string `json:"container"`
	Stdin     bool   `json:"stdin,omitempty"`
	Stdout    bool   `json:"stdout,omitempty"`
	Stderr    bool   `json:"stderr,omitempty"`
}

// Response is the answer to it; an empty Error means yes.
type Response struct {
	Error string `json:"error,omitempty"`
	// NotRunning says that the container has ended or never began.
	NotRunning bool `json:"notRunning,omitempty"`
}

// The streams of frames. The client sends Stdin (an empty frame ends it), the shim sends the other two.
const (
	Stdin  byte = 0
	Stdout byte = 1
	Stderr byte = 2
)

// maxLine and maxFrame bound what a peer makes us hold.
const (
	maxLine  = 4096
	maxFrame = 64 << 10
)

// ErrTooLong is the fate of lines and frames beyond their bounds.
var ErrTooLong = errors.New("too long")

// WriteLine sends v as one line of JSON.
func WriteLine(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// ReadLine reads one line of JSON into v. The reader's buffer has to be at least 4 KiB, as bufio's is.
func ReadLine(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine {
		return fmt.Errorf("line: %w", ErrTooLong)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// WriteFrame sends p on a stream, cut as needed; an empty p is one empty frame.
func WriteFrame(w io.Writer, stream byte, p []byte) error {
	for first := true; first || len(p) > 0; first = false {
		n := min(len(p), maxFrame)
		buf := make([]byte, 5, 5+n)
		buf[0] = stream
		binary.BigEndian.PutUint32(buf[1:], uint32(n)) //nolint:gosec // at most maxFrame
		if _, err := w.Write(append(buf, p[:n]...)); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// ReadFrame reads one frame into buf, growing it as needed, and returns its stream and its bytes.
func ReadFrame(r io.Reader, buf []byte) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame: %w", ErrTooLong)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	_, err := io.ReadFull(r, buf[:n])
	return head[0], buf[:n], err
}

// Listen makes a pod's socket, for root only. The name of a socket is limited to 107 bytes, paths of pods are not: it goes by
// an open directory.
func Listen(dir string) (net.Listener, error) {
	d, short, err := shorten(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	if err := os.Remove(short); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", dir, err)
	}
	// By the time it closes, the short name may mean another directory.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(short, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect socket: %w", err)
	}
	return l, nil
}

// Dial connects to a pod's socket.
func Dial(ctx context.Context, dir string) (net.Conn, error) {
	d, short, err := shorten(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("dial shim in %s: %w", dir, err)
	}
	return conn, nil
}

func shorten(dir string) (*os.File, string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, "", fmt.Errorf("open directory of the pod: %w", err)
	}
	return d, fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName), nil
}
