// SPDX-License-Identifier: Apache-2.0

// Package stream serves the CRI's streaming calls: exec, attach and port
// forwarding over SPDY and WebSocket, and the captured exec of ExecSync.
//
// It owns the listener and the sessions, not the processes: those come from a
// Runtime, which the container room implements. It promises that an exec
// returns when its command has ended, even if something that the command
// started keeps its output open, and that no output of the command itself is
// lost to a slow reader.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// ErrNotServing is the answer to requests for a URL before Start or after Stop.
var ErrNotServing = errors.New("streaming server is not listening")

// Size is a terminal's size in characters.
type Size = remotecommand.TerminalSize

// Command says what to run in a container, and with which streams. A nil
// stream is not connected; with a terminal Stderr is nil.
type Command struct {
	Args   []string
	TTY    bool
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// Process is a command started in a container. The implementation copies the
// streams of its Command: it reads Stdin until its end and writes what the
// command prints.
type Process interface {
	// Wait returns the exit code when the command itself has ended.
	Wait(ctx context.Context) (uint32, error)
	// Drain returns nil when the ends of stdout and stderr were reached and all
	// of them has been written to the Command's streams; or ctx's error.
	Drain(ctx context.Context) error
	// Resize sets the size of the terminal.
	Resize(ctx context.Context, size Size) error
	// CloseStdin lets the command read the end of its input; called once, when
	// Stdin has ended and all of it was copied.
	CloseStdin(ctx context.Context) error
	// Kill ends the command with SIGKILL; an ended one is success.
	Kill(ctx context.Context) error
	// Delete releases what the process holds, and stops copying output at once.
	Delete(ctx context.Context) error
}

// Streams are the client's side of an attach. A nil stream is not connected.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	TTY    bool
	Resize <-chan Size
}

// Runtime gives access to what runs. Errors carry containerd's error kinds.
type Runtime interface {
	// Exec starts a command in a running container.
	Exec(ctx context.Context, containerID string, cmd Command) (Process, error)
	// Attach connects streams to a running container's own process until it
	// ends or the client goes; Hub does that for processes with FIFOs.
	Attach(ctx context.Context, containerID string, s Streams) error
	// NetNS returns the path of a ready sandbox's network namespace, empty for
	// the host's.
	NetNS(ctx context.Context, podSandboxID string) (string, error)
}

// Config of the streaming server.
type Config struct {
	// Address to listen on; the kubelet connects from the same machine.
	Address string `yaml:"address"`
	// IdleTimeout ends sessions that move no byte for so long.
	IdleTimeout time.Duration `yaml:"idleTimeout"`
	// CreationTimeout is how long a client may take to open its streams.
	CreationTimeout time.Duration `yaml:"creationTimeout"`
	// DrainTimeout is how long output may stay silent after its command has
	// ended before the session ends although somebody keeps the pipe open.
	DrainTimeout time.Duration `yaml:"drainTimeout"`
	// CertFile and KeyFile switch TLS on.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

// Default returns the configuration for a kubelet on the same machine.
func Default() Config {
	return Config{
		Address:         "127.0.0.1:0",
		IdleTimeout:     4 * time.Hour,
		CreationTimeout: 30 * time.Second,
		DrainTimeout:    2 * time.Second,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address: %w", err))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"idleTimeout", c.IdleTimeout}, {"creationTimeout", c.CreationTimeout}, {"drainTimeout", c.DrainTimeout}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", d.name, d.value))
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("certFile: needs keyFile, and the reverse"))
	}
	return errors.Join(errs...)
}

// Server hands out one-time URLs and serves them.
type Server struct {
	cfg Config
	rt  Runtime

	tokens tokens

	// mu guards the running server.
	mu      sync.Mutex
	handler streaming.Server
	http    *http.Server
	addr    net.Addr
	base    context.Context //nolint:containedctx // the life of the sessions, which begin in the library
	cancel  context.CancelFunc
	served  chan struct{}
}

// New makes a server that does not listen yet.
func New(cfg Config, rt Runtime) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, rt: rt}, nil
}

// Start listens and serves until Stop.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != nil {
		return nil
	}
	scheme, tlsConfig, err := s.tls()
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	scfg := streaming.DefaultConfig
	scfg.Addr = ln.Addr().String()
	scfg.BaseURL = &url.URL{Scheme: scheme, Host: reachable(ln.Addr()), Path: "/"}
	scfg.StreamIdleTimeout = s.cfg.IdleTimeout
	scfg.StreamCreationTimeout = s.cfg.CreationTimeout
	h, err := streaming.NewServer(scfg, (*sessions)(s))
	if err != nil {
		return errors.Join(fmt.Errorf("make streaming server: %w", err), ln.Close())
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	srv := &http.Server{
		Handler:           front{s, h},
		ReadHeaderTimeout: s.cfg.CreationTimeout,
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	if tlsConfig != nil {
		ln = tls.NewListener(ln, tlsConfig)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln) // ends with ErrServerClosed by Stop
	}()
	s.handler, s.http, s.addr, s.base, s.cancel, s.served = h, srv, ln.Addr(), base, cancel, served
	return nil
}

// tls loads the certificate when one is configured. HTTP/2 is not offered,
// for its connections cannot be taken over by SPDY or WebSocket.
func (s *Server) tls() (string, *tls.Config, error) {
	if s.cfg.CertFile == "" {
		return "http", nil, nil
	}
	cert, err := tls.LoadX509KeyPair(s.cfg.CertFile, s.cfg.KeyFile)
	if err != nil {
		return "", nil, fmt.Errorf("load streaming certificate: %w", err)
	}
	return "https", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, nil
}

// reachable is the address that a client on this machine can dial: a wildcard
// listener is reached over loopback.
func reachable(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return a.String()
	}
	ip := net.IPv6loopback
	if tcp.IP.To4() != nil {
		ip = net.IPv4(127, 0, 0, 1)
	}
	return (&net.TCPAddr{IP: ip, Port: tcp.Port}).String()
}

// Stop closes the listener and ends the sessions' contexts. What runs in the
// containers goes on.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	srv, cancel, served := s.http, s.cancel, s.served
	s.handler, s.http = nil, nil
	s.mu.Unlock()
	if srv == nil {
		return nil
	}
	cancel()
	err := srv.Close()
	select {
	case <-served:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("stop streaming server: %w", ctx.Err()))
	}
	return err
}

// Addr returns the address that the server listens on, nil before Start.
func (s *Server) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// serving returns the library's server.
func (s *Server) serving() (streaming.Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handler == nil {
		return nil, ErrNotServing
	}
	return s.handler, nil
}

// GetExec returns the one-time URL of an exec session. The caller has checked
// that the container exists and runs.
func (s *Server) GetExec(req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	h, err := s.serving()
	if err != nil {
		return nil, err
	}
	resp, err := h.GetExec(req)
	if err != nil {
		return nil, err
	}
	s.tokens.add(resp.GetUrl(), ticket{exec: req})
	return resp, nil
}

// GetAttach returns the one-time URL of an attach session.
func (s *Server) GetAttach(req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	h, err := s.serving()
	if err != nil {
		return nil, err
	}
	resp, err := h.GetAttach(req)
	if err != nil {
		return nil, err
	}
	s.tokens.add(resp.GetUrl(), ticket{att: req})
	return resp, nil
}

// GetPortForward returns the one-time URL of a port forwarding session.
func (s *Server) GetPortForward(req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	h, err := s.serving()
	if err != nil {
		return nil, err
	}
	resp, err := h.GetPortForward(req)
	if err != nil {
		return nil, err
	}
	s.tokens.add(resp.GetUrl(), ticket{})
	return resp, nil
}

// sessions is the Server as the library calls it.
type sessions Server

var _ streaming.Runtime = (*sessions)(nil)

// Exec runs one interactive exec session.
func (s *sessions) Exec(ctx context.Context, id string, args []string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan Size) error { //nolint:revive // argument-limit: the library's interface
	run := execution{rt: s.rt, drain: s.cfg.DrainTimeout, resize: resize}
	code, err := run.run(ctx, id, Command{
		Args: args, TTY: tty, Stdin: in, Stdout: nilWriter(out), Stderr: nilWriter(errw),
	})
	if err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// Attach runs one attach session.
func (s *sessions) Attach(ctx context.Context, id string, in io.Reader, out, errw io.WriteCloser, tty bool, resize <-chan Size) error { //nolint:revive // argument-limit: the library's interface
	return s.rt.Attach(ctx, id, Streams{
		Stdin: in, Stdout: nilWriter(out), Stderr: nilWriter(errw), TTY: tty, Resize: resize,
	})
}

// PortForward connects one client stream with a port of a sandbox.
func (s *sessions) PortForward(ctx context.Context, podSandboxID string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()                   //nolint:errcheck // the client's side is gone either way
	ctx, cancel := context.WithCancel(ctx) // the library's has no end
	defer cancel()
	s.mu.Lock()
	stop := context.AfterFunc(s.base, cancel) //nolint:contextcheck // ends with the server, not with the caller
	s.mu.Unlock()
	defer stop()
	netns, err := s.rt.NetNS(ctx, podSandboxID)
	if err != nil {
		return fmt.Errorf("network namespace of sandbox %s: %w", podSandboxID, err)
	}
	return forward(ctx, netns, port, stream)
}

// nilWriter keeps a nil interface nil across the change of its type.
func nilWriter(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

// exitError tells the library a command's exit code; it is that of
// k8s.io/utils/exec.ExitError.
type exitError struct{ code uint32 }

func (e *exitError) Error() string   { return fmt.Sprintf("exit status %d", e.code) }
func (e *exitError) String() string  { return e.Error() }
func (e *exitError) Exited() bool    { return true }
func (e *exitError) ExitStatus() int { return int(e.code) }
