// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"                //nolint:depguard // the client that kubectl is made of
	"k8s.io/client-go/tools/remotecommand" //nolint:depguard // the client that kubectl is made of
	utilexec "k8s.io/client-go/util/exec"  //nolint:depguard // the client that kubectl is made of
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/stream"
)

// clients are both protocols of kubectl.
func clients() map[string]func(t *testing.T, raw string) remotecommand.Executor {
	return map[string]func(t *testing.T, raw string) remotecommand.Executor{
		"spdy": func(t *testing.T, raw string) remotecommand.Executor {
			t.Helper()
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: raw}, http.MethodPost, u)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
		"websocket": func(t *testing.T, raw string) remotecommand.Executor {
			t.Helper()
			e, err := remotecommand.NewWebSocketExecutor(&rest.Config{Host: raw}, http.MethodGet, raw)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
	}
}

// session runs one command over one protocol.
func session(t *testing.T, s *stream.Server, dial func(*testing.T, string) remotecommand.Executor, o remotecommand.StreamOptions, args ...string) error {
	t.Helper()
	resp, err := s.GetExec(&runtimeapi.ExecRequest{
		ContainerId: "c", Cmd: args, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dial(t, resp.Url).StreamWithContext(t.Context(), o)
}

func TestExec(t *testing.T) {
	s := serve(t, &host{})
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			o := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs, Stdin: strings.NewReader("from the client\n")}
			// cat ends because the end of the input comes through.
			err := session(t, s, client, o, "sh", "-c", "cat; echo oops >&2; exit 3")
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 3 {
				t.Errorf("exit: %v", err)
			}
			if out.String() != "from the client\n" || errs.String() != "oops\n" {
				t.Errorf("%q, %q", out.String(), errs.String())
			}
			out.Reset()
			if err := session(t, s, client, remotecommand.StreamOptions{Stdout: &out}, "echo", "hi"); err != nil || out.String() != "hi\n" {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
}

// sizes gives one terminal size.
type sizes chan remotecommand.TerminalSize

func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

func TestExecTerminal(t *testing.T) {
	s := serve(t, &host{})
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			ch := make(sizes, 1)
			ch <- remotecommand.TerminalSize{Width: 123, Height: 45}
			defer close(ch)
			var out bytes.Buffer
			o := remotecommand.StreamOptions{Stdout: &out, Stdin: strings.NewReader(""), Tty: true, TerminalSizeQueue: ch}
			err := session(t, s, client, o, "sh", "-c", `until [ "$(stty size)" = "45 123" ]; do :; done; echo sized; exit 7`)
			var exit utilexec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 7 || out.String() != "sized\r\n" {
				t.Errorf("%q, %v", out.String(), err)
			}
		})
	}
}

// slowly takes its bytes late: longer than the drain timeout.
type slowly struct {
	n    int
	wait *time.Ticker
}

func (w *slowly) Write(p []byte) (int, error) {
	if w.n == 0 {
		<-w.wait.C
	}
	w.n += len(p)
	return len(p), nil
}

// TestExecSlowClient: a client that is slower than the drain timeout gets all
// that the command wrote.
func TestExecSlowClient(t *testing.T) {
	s := serve(t, &host{}, func(c *stream.Config) { c.DrainTimeout = 20 * time.Millisecond })
	w := &slowly{wait: time.NewTicker(200 * time.Millisecond)}
	defer w.wait.Stop()
	const size = 500000
	err := session(t, s, clients()["spdy"], remotecommand.StreamOptions{Stdout: w}, "head", "-c", "500000", "/dev/zero")
	if err != nil || w.n != size {
		t.Errorf("%d bytes, %v", w.n, err)
	}
}

func TestExecGrandchildHoldsOutput(t *testing.T) {
	s := serve(t, &host{})
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := session(t, s, client, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "sleep 1000 & echo hi")
			if err != nil || out.String() != "hi\n" {
				t.Errorf("%q, %v", out.String(), err)
			}
			out.Reset()
			err = session(t, s, client, remotecommand.StreamOptions{Stdout: &out}, "sh", "-c", "echo hi; while :; do echo noise; done & exit 0")
			if err != nil || !strings.Contains(out.String(), "hi\n") {
				t.Errorf("%.20q, %v", out.String(), err)
			}
		})
	}
}

func TestExecOnce(t *testing.T) {
	s := serve(t, &host{})
	resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	client := clients()["spdy"]
	for i, ok := range []bool{true, false} {
		if err := client(t, resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard}); (err == nil) != ok {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestExecMany: the library refuses more than a thousand URLs a minute that
// nobody uses; those of sessions that it does not serve are used.
func TestExecMany(t *testing.T) {
	s, _ := deafServer(t)
	for range 1100 {
		resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, resp.Url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = upgrade("v5.channel.k8s.io", "13")
		answer, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("status %s", answer.Status)
		}
	}
}

func TestExecFails(t *testing.T) {
	h := &host{}
	s := serve(t, h)
	if err := session(t, s, clients()["spdy"], remotecommand.StreamOptions{Stdout: io.Discard}, "/does/not/exist"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("%v", err)
	}
	h.fail = errBroken
	if _, err := s.ExecSync(t.Context(), "c", []string{"true"}, 0); !errors.Is(err, errBroken) {
		t.Errorf("%v", err)
	}
	for _, r := range []*runtimeapi.ExecRequest{
		{Cmd: []string{"x"}, Stdout: true},
		{ContainerId: "c", Cmd: []string{"x"}},
		{ContainerId: "c", Cmd: []string{"x"}, Tty: true, Stdout: true, Stderr: true},
	} {
		if _, err := s.GetExec(r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestExecSync(t *testing.T) {
	s := serve(t, &host{})
	r, err := s.ExecSync(t.Context(), "c", []string{"sh", "-c", "echo out; echo err >&2; exit 42"}, time.Minute)
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.ExitCode != 42 {
		t.Errorf("%v, %v", r, err)
	}
	r, err = s.ExecSync(t.Context(), "c", []string{"head", "-c", "20000000", "/dev/zero"}, 0)
	if err != nil || len(r.Stdout) != stream.MaxCapture || r.ExitCode != 0 {
		t.Errorf("%d bytes, %v", len(r.GetStdout()), err)
	}
	r, err = s.ExecSync(t.Context(), "c", []string{"sh", "-c", "sleep 1000 & echo hi"}, 0)
	if err != nil || string(r.Stdout) != "hi\n" {
		t.Errorf("%v, %v", r, err)
	}
	r, err = s.ExecSync(t.Context(), "c", []string{"sh", "-c", "echo hi; (while :; do echo noise; sleep 0.01; done) &"}, 0)
	if err != nil || !strings.HasPrefix(string(r.Stdout), "hi\n") {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.ExecSync(t.Context(), "c", nil, 0); err == nil {
		t.Error("no command: no error")
	}
}

func TestExecSyncTimeout(t *testing.T) {
	h := &host{}
	s := serve(t, h)
	_, err := s.ExecSync(t.Context(), "c", []string{"sleep", "1000"}, 20*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "timed out after 20ms") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ExecSync(ctx, "c", []string{"sleep", "1000"}, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	h.lost = errors.New("connection lost")
	if _, err := s.ExecSync(t.Context(), "c", []string{"sleep", "1000"}, 0); !errors.Is(err, h.lost) {
		t.Errorf("%v", err)
	}
	for _, p := range h.procs {
		if !p.killed {
			t.Error("not killed")
		}
	}
}

func TestStop(t *testing.T) {
	h := &host{}
	s := serve(t, h)
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		done <- session(t, s, clients()["spdy"], remotecommand.StreamOptions{Stdout: &signal{ch: started}}, "sh", "-c", "echo up; sleep 1000")
	}()
	<-started
	if err := errors.Join(s.Stop(t.Context()), s.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("the session went on")
	}
	if _, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true}); !errors.Is(err, stream.ErrNotServing) {
		t.Errorf("%v", err)
	}
}

// signal closes ch at the first Write.
type signal struct {
	ch   chan struct{}
	done bool
}

func (s *signal) Write(p []byte) (int, error) {
	if !s.done {
		s.done = true
		close(s.ch)
	}
	return len(p), nil
}
