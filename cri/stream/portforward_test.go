// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"              //nolint:depguard // the client that kubectl is made of
	"k8s.io/client-go/tools/portforward" //nolint:depguard // the client that kubectl is made of
	"k8s.io/client-go/transport/spdy"    //nolint:depguard // the client that kubectl is made of
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/nodeagent/nodeagent/cri/stream"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("needs root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root; set NODEAGENT_SKIP_ROOT=1 to leave the root tests out")
}

// shout answers with what it read, in capitals, when the client half-closes.
func shout(t *testing.T, l net.Listener) {
	t.Helper()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			_, _ = c.Write(bytes.ToUpper(b))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
}

// inNetNS makes a namespace with only a loopback interface, pinned at a path,
// and a listener in it.
func inNetNS(t *testing.T, address string) (path string, port int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		if err == nil {
			err = exec.CommandContext(t.Context(), "ip", "link", "set", "lo", "up").Run()
		}
		var l net.Listener
		if err == nil {
			l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		}
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	shout(t, r.l)
	return path, r.l.Addr().(*net.TCPAddr).Port //nolint:errcheck,forcetypeassert // a TCP listener
}

// dialers are both protocols of kubectl.
func dialers() map[string]func(t *testing.T, u *url.URL) httpstream.Dialer {
	return map[string]func(t *testing.T, u *url.URL) httpstream.Dialer{
		"spdy": func(t *testing.T, u *url.URL) httpstream.Dialer {
			t.Helper()
			rt, up, err := spdy.RoundTripperFor(&rest.Config{Host: u.String()})
			if err != nil {
				t.Fatal(err)
			}
			return spdy.NewDialerForStreaming(up, &http.Client{Transport: rt}, http.MethodPost, u)
		},
		"websocket": func(t *testing.T, u *url.URL) httpstream.Dialer {
			t.Helper()
			d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{Host: u.String()})
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
	}
}

// portURL is the address of a session.
func portURL(t *testing.T, s *stream.Server, port int) *url.URL {
	t.Helper()
	resp, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// forwardOnce sends a text through kubectl's own forwarder and returns the
// answer, or what the forwarder reported as error.
func forwardOnce(t *testing.T, d httpstream.Dialer, port int, text string) (string, string) {
	t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	var errs bytes.Buffer
	f, err := portforward.NewForStreaming(d, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, &errs)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	<-ready
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite() //nolint:errcheck,forcetypeassert // a TCP connection
	answer, _ := io.ReadAll(c)
	_ = c.Close()
	close(stop)
	if err := <-done; err != nil && !errors.Is(err, portforward.ErrLostConnectionToPod) {
		t.Error(err)
	}
	return string(answer), errs.String()
}

func TestRootPortForward(t *testing.T) {
	needRoot(t)
	for name, dial := range dialers() {
		t.Run(name, func(t *testing.T) {
			for family, address := range map[string]string{"ipv4": "127.0.0.1:0", "ipv6": "[::1]:0"} {
				t.Run(family, func(t *testing.T) {
					path, port := inNetNS(t, address)
					u := portURL(t, serve(t, &host{netns: path}), port)
					text := strings.Repeat("hello ", 1<<20)
					if got, errs := forwardOnce(t, dial(t, u), port, text); got != strings.ToUpper(text) || errs != "" {
						t.Errorf("%d bytes, %q", len(got), errs)
					}
				})
			}
			t.Run("host", func(t *testing.T) {
				l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				shout(t, l)
				port := l.Addr().(*net.TCPAddr).Port //nolint:errcheck,forcetypeassert // a TCP listener
				u := portURL(t, serve(t, &host{}), port)
				if got, errs := forwardOnce(t, dial(t, u), port, "x"); got != "X" || errs != "" {
					t.Errorf("%q, %q", got, errs)
				}
			})
			t.Run("closed port", func(t *testing.T) {
				path, port := inNetNS(t, "127.0.0.1:0")
				closed := port%65535 + 1
				u := portURL(t, serve(t, &host{netns: path}), closed)
				if got := forwardError(t, dial(t, u), closed); !strings.Contains(got, "connection refused") {
					t.Errorf("%q", got)
				}
			})
		})
	}
}

// forwardError opens one connection as kubectl does and returns what is said
// of its failure.
func forwardError(t *testing.T, d httpstream.Dialer, port int) string {
	t.Helper()
	conn, protocol, err := d.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil || protocol != portforward.PortForwardProtocolV1Name {
		t.Fatalf("%q, %v", protocol, err)
	}
	defer conn.Close() //nolint:errcheck // the session has failed
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(port))
	h.Set(corev1.PortForwardRequestIDHeader, "0")
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	errs, err := conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	if _, err := conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(errs)
	if err != nil {
		t.Log(err) // the stream is reset after its text
	}
	return string(said)
}

// upgrade is the head of a request for a WebSocket.
func upgrade(protocol, version string) http.Header {
	return http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {protocol},
		"Sec-Websocket-Version": {version}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	}
}

// TestTunnelRefused: a WebSocket that cannot become a tunnel is answered as
// any other request, and its URL is used up.
func TestTunnelRefused(t *testing.T) {
	s := serve(t, &host{})
	exec, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		url      string
		protocol string
		version  string
		want     int
	}{
		{exec.Url, "SPDY/3.1+portforward.k8s.io", "13", http.StatusForbidden},
		{portURL(t, s, 80).String(), "SPDY/3.1+nothing.k8s.io", "13", http.StatusForbidden},
		{portURL(t, s, 80).String(), "SPDY/3.1+portforward.k8s.io", "7", http.StatusBadRequest},
		{portURL(t, s, 80).String() + "x", "SPDY/3.1+portforward.k8s.io", "13", http.StatusNotFound},
	} {
		for _, want := range []int{c.want, http.StatusNotFound} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header = upgrade(c.protocol, c.version)
			resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s version %s of %s: %d %q", c.protocol, c.version, c.url, resp.StatusCode, body)
			}
		}
	}
}

// TestTunnelStops: the server's end is the tunnel's.
func TestTunnelStops(t *testing.T) {
	s := serve(t, &host{})
	conn, _, err := dialers()["websocket"](t, portURL(t, s, 80)).Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the session has ended
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-conn.CloseChan()
}

func TestRootPortForwardFails(t *testing.T) {
	needRoot(t)
	path, port := inNetNS(t, "127.0.0.1:0")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		netns string
		port  int
		want  string
	}{
		{path, port%65535 + 1, "connection refused"},
		{path, 0, "not a TCP port"},
		{path, 65536, "not a TCP port"},
		{"/does/not/exist", 80, "open network namespace"},
		{file, 80, "enter network namespace"},
	} {
		err := stream.Forward(t.Context(), c.netns, int32(c.port), &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %d: %v", c.netns, c.port, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := stream.Forward(ctx, path, int32(port), &bytes.Buffer{}); err == nil {
		t.Error("forwarded for a client that has gone")
	}
}
