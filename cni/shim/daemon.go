// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// errAway: nobody answers on the daemon's socket, or not to the end.
var errAway = errors.New("daemon away")

func isAway(err error) bool { return errors.Is(err, errAway) }

// awayError says how the daemon is away.
type awayError struct {
	what string
	err  error
}

func (e *awayError) Error() string   { return e.what + ": " + e.err.Error() }
func (e *awayError) Unwrap() []error { return []error{errAway, e.err} }

// answerTimeout bounds the wait for one answer; a runtime gives up earlier.
const answerTimeout = 2 * time.Minute

// retryEvery is the pause between two attempts to connect.
const retryEvery = 20 * time.Millisecond

// daemon is one request to the daemon. It speaks HTTP/1.0 by hand, because
// net/http alone would make the program start more slowly than the daemon
// answers.
type daemon struct {
	socket, trace, path string
	payload             []byte
}

// exchange sends the request and returns the body of the answer; an answer
// that is no success is an *Error. It tries to connect for as long as patience.
func (d daemon) exchange(patience time.Duration) ([]byte, error) {
	conn, err := d.connect(time.Now().Add(patience))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(conn), d.socket)
	defer f.Close() //nolint:errcheck // the answer is complete or the error says so
	if _, err := f.Write(d.request()); err != nil {
		return nil, &awayError{"send to " + d.socket, err}
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return nil, &awayError{"receive from " + d.socket, err}
	}
	status, body, ok := parseAnswer(raw)
	if !ok {
		return nil, &awayError{"receive from " + d.socket, io.ErrUnexpectedEOF}
	}
	if status == 200 {
		return body, nil
	}
	return nil, decodeError(status, body)
}

// connect connects to the socket, again and again until the deadline.
func (d daemon) connect(deadline time.Time) (fd int, err error) {
	for {
		fd, err = dial(d.socket)
		if err == nil {
			return fd, nil
		}
		if !time.Now().Add(retryEvery).Before(deadline) {
			return -1, &awayError{"connect to " + d.socket, err}
		}
		<-time.After(retryEvery)
	}
}

// dial returns a blocking socket: the program has nothing else to do.
func dial(path string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	tv := syscall.NsecToTimeval(answerTimeout.Nanoseconds())
	err = errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &tv),
		syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}))
	if err != nil {
		return -1, errors.Join(err, syscall.Close(fd))
	}
	return fd, nil
}

func (d daemon) request() []byte {
	var b bytes.Buffer
	b.WriteString("POST " + d.path + " HTTP/1.0\r\nHost: nodeagent\r\nContent-Type: application/json\r\nContent-Length: ")
	b.WriteString(strconv.Itoa(len(d.payload)))
	if d.trace != "" && !strings.ContainsAny(d.trace, "\r\n") {
		b.WriteString("\r\nTraceparent: " + d.trace)
	}
	b.WriteString("\r\n\r\n")
	b.Write(d.payload)
	return b.Bytes()
}

// parseAnswer splits an HTTP answer; ok is false if it is cut off.
func parseAnswer(raw []byte) (status int, body []byte, ok bool) {
	head, body, found := bytes.Cut(raw, []byte("\r\n\r\n"))
	lines := strings.Split(string(head), "\r\n")
	fields := strings.Fields(lines[0])
	if !found || len(fields) < 2 || !strings.HasPrefix(fields[0], "HTTP/1.") {
		return 0, nil, false
	}
	status, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0, nil, false
	}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		if !strings.EqualFold(name, "Content-Length") {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err != nil || n != len(body) {
			return 0, nil, false
		}
	}
	return status, body, true
}

// decodeError reads the daemon's error; anything else on that socket is none.
func decodeError(status int, body []byte) error {
	var e Error
	if err := json.Unmarshal(body, &e); err != nil || e.Code == 0 {
		return fault(CodeInternal, "the daemon answered "+strconv.Itoa(status), strings.TrimSpace(string(body)))
	}
	return &e
}
