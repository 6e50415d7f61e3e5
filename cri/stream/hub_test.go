// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand" //nolint:depguard // the client that kubectl is made of
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/stream"
)

// TestAttach connects two clients with a container that echoes its input.
func TestAttach(t *testing.T) {
	for name, client := range clients() {
		t.Run(name, func(t *testing.T) {
			stdin, in := io.Pipe()
			hub := stream.NewHub(stream.Control{
				Stdin: in, StdinOnce: true, CloseStdin: func(context.Context) error { return in.Close() },
			})
			s := serve(t, &host{hub: hub})
			var wg sync.WaitGroup
			wg.Go(func() { // the container
				b, _ := io.ReadAll(stdin)
				_, _ = hub.Stdout().Write(bytes.ToUpper(b))
				_, _ = io.WriteString(hub.Stderr(), "bye")
				hub.Close()
			})
			var out, errs bytes.Buffer
			resp, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				t.Fatal(err)
			}
			err = client(t, resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
				Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs,
			})
			wg.Wait()
			if err != nil || out.String() != "HELLO" || errs.String() != "bye" {
				t.Errorf("%q, %q, %v", out.String(), errs.String(), err)
			}
		})
	}
}

func TestHubManyClients(t *testing.T) {
	hub := stream.NewHub(stream.Control{})
	const n, lines = 5, 1000
	outs := make([]bytes.Buffer, n)
	ready := make(chan struct{}, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := hub.Attach(t.Context(), stream.Streams{Stdout: &readyWriter{w: &outs[i], ready: ready}}); err != nil {
				t.Error(err)
			}
		})
	}
	// Attached is who got a byte.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for got := 0; got < n; {
		_, _ = hub.Stdout().Write([]byte{'.'})
		select {
		case <-ready:
			got++
		case <-tick.C:
		}
	}
	for range lines {
		_, _ = io.WriteString(hub.Stdout(), "line\n")
		_, _ = io.WriteString(hub.Stderr(), "nobody wants it\n")
	}
	hub.Close()
	wg.Wait()
	for i := range outs {
		if got := strings.Count(outs[i].String(), "line\n"); got != lines || strings.Contains(outs[i].String(), "nobody") {
			t.Errorf("client %d got %d lines", i, got)
		}
	}
	if err := hub.Attach(t.Context(), stream.Streams{Stdout: io.Discard}); err != nil {
		t.Errorf("attach after the end: %v", err)
	}
}

// readyWriter tells of its first byte.
type readyWriter struct {
	w     io.Writer
	ready chan struct{}
	done  bool
}

func (r *readyWriter) Write(p []byte) (int, error) {
	if !r.done {
		r.done = true
		r.ready <- struct{}{}
	}
	return r.w.Write(p)
}

// TestHubClientGone: a client whose connection broke does not hold up the
// container, nor one that goes with its context.
func TestHubClientGone(t *testing.T) {
	hub := stream.NewHub(stream.Control{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- hub.Attach(ctx, stream.Streams{Stdout: brokenPipe{}}) }()
	go func() { done <- hub.Attach(ctx, stream.Streams{Stderr: io.Discard}) }()
	for range 1000 {
		_, _ = hub.Stdout().Write([]byte("x"))
	}
	cancel()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// TestHubDetach: without stdin_once the end of a client's input ends its
// session, and the container's input stays open for the next.
func TestHubDetach(t *testing.T) {
	var in bytes.Buffer
	hub := stream.NewHub(stream.Control{Stdin: &in, CloseStdin: func(context.Context) error {
		t.Error("input was closed")
		return nil
	}})
	for _, text := range []string{"one ", "two"} {
		if err := hub.Attach(t.Context(), stream.Streams{Stdin: strings.NewReader(text), Stdout: io.Discard}); err != nil {
			t.Fatal(err)
		}
	}
	if in.String() != "one two" {
		t.Errorf("%q", in.String())
	}
}
