// SPDX-License-Identifier: Apache-2.0

package ttrpc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	theirs "github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

// TestServerWithTheirClient has containerd's own ttrpc client call our server: errors keep their kind, calls run side by side,
// a client that goes cancels what it waits for.
func TestServerWithTheirClient(t *testing.T) {
	release := make(chan struct{})
	entered, cancelled := make(chan struct{}), make(chan struct{})
	kinds := []error{errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, errdefs.ErrNotImplemented}
	methods := map[string]ttrpc.Handler{
		"s/Wait": func(ctx context.Context, _ []byte) (wire.Message, error) {
			select {
			case <-release:
				return nil, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		"s/Hang": func(ctx context.Context, _ []byte) (wire.Message, error) {
			close(entered)
			<-ctx.Done()
			close(cancelled)
			return nil, ctx.Err()
		},
		"s/Release": func(context.Context, []byte) (wire.Message, error) { close(release); return nil, nil },
		"s/Slow": func(ctx context.Context, _ []byte) (wire.Message, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}
	for i, kind := range kinds {
		methods[fmt.Sprintf("s/Fail%d", i)] = func(context.Context, []byte) (wire.Message, error) { return nil, fmt.Errorf("thing: %w", kind) }
	}
	l, path := listen(t)
	served := make(chan error, 1)
	go func() { served <- (&ttrpc.Server{Methods: methods}).Serve(t.Context(), l) }()
	dial := func() *theirs.Client {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return theirs.NewClient(conn)
	}
	c := dial()
	call := func(ctx context.Context, method string) error {
		return c.Call(ctx, "s", method, &theirs.Request{Service: "s", Method: method}, &theirs.Response{})
	}
	for i, kind := range kinds {
		if err := errgrpc.ToNative(call(t.Context(), fmt.Sprintf("Fail%d", i))); !errors.Is(err, kind) {
			t.Errorf("got %v, want %v", err, kind)
		}
	}
	if err := errgrpc.ToNative(call(t.Context(), "Nothing")); !errdefs.IsNotImplemented(err) {
		t.Errorf("unknown method: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := call(short, "Slow"); err == nil {
		t.Error("a call outlived its deadline")
	}
	waited := make(chan error, 1)
	go func() { waited <- call(t.Context(), "Wait") }()
	if err := call(t.Context(), "Release"); err != nil {
		t.Error(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	gone := dial()
	dropped := make(chan error, 1)
	go func() { dropped <- gone.Call(t.Context(), "s", "Hang", &theirs.Request{}, &theirs.Response{}) }()
	<-entered
	_ = gone.Close()
	<-cancelled
	if err := <-dropped; err == nil {
		t.Error("a call was answered over a closed connection")
	}
	_ = c.Close()
	_ = l.Close()
	if err := <-served; err == nil {
		t.Error("a closed listener is an error")
	}
}

type events struct {
	got chan *eventsapi.ForwardRequest
}

func (e events) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	e.got <- r
	return &emptypb.Empty{}, nil
}

// TestClientWithTheirServer sends an event to containerd's own ttrpc server, through a restart of that.
func TestClientWithTheirServer(t *testing.T) {
	// A server that is closed may take a request and not answer: then it arrives twice. Nobody waits here for the other.
	got := make(chan *eventsapi.ForwardRequest, 8)
	var path string
	serve := func() *theirs.Server {
		var l net.Listener
		if path == "" {
			l, path = listen(t)
		} else {
			var err error
			if l, err = net.Listen("unix", path); err != nil {
				t.Fatal(err)
			}
		}
		s, err := theirs.NewServer()
		if err != nil {
			t.Fatal(err)
		}
		eventsapi.RegisterTTRPCEventsService(s, events{got})
		go func() { _ = s.Serve(context.WithoutCancel(t.Context()), l) }()
		return s
	}
	var envelope, request wire.Message
	at := time.Unix(1700000000, 5).UTC()
	envelope.Time(1, at)
	envelope.String(2, "k8s.io")
	envelope.String(3, "/tasks/oom")
	envelope.Any(4, wire.Any{Type: "x", Value: []byte("y")})
	request.Bytes(1, envelope)
	s := serve()
	c := &ttrpc.Client{Address: path}
	defer c.Close()
	for range 2 {
		_, err := c.Call(t.Context(), "containerd.services.events.ttrpc.v1.Events", "Forward", request)
		if err != nil { // the server that it was connected to has gone
			_, err = c.Call(t.Context(), "containerd.services.events.ttrpc.v1.Events", "Forward", request)
		}
		if err != nil {
			t.Fatal(err)
		}
		e := (<-got).Envelope
		if e.Namespace != "k8s.io" || e.Topic != "/tasks/oom" || !e.Timestamp.AsTime().Equal(at) || e.Event.TypeUrl != "x" || string(e.Event.Value) != "y" {
			t.Errorf("got %v", e)
		}
		if _, err := c.Call(t.Context(), "no", "such", nil); err == nil {
			t.Error("an unknown service answered")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s = serve()
	}
	_ = s.Close()
}
