// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// reach makes the address of a stream one of the machine.
func reach(t *testing.T, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	addr, stop, err := node.Forward(t.Context(), u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stop() })
	u.Host = addr
	return u
}

// protocols of streams; containerd's plugin speaks the first only.
func protocols() []string {
	if onNodeagent() {
		return []string{"spdy", "websocket"}
	}
	return []string{"spdy"}
}

// executors speak both protocols of a stream.
func executors(t *testing.T, u *url.URL) map[string]remotecommand.Executor {
	t.Helper()
	old, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, u.String())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"spdy": old, "websocket": socket}
}

func TestExec(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(nil)
	for _, tt := range []struct {
		name, script, in, out, errOut string
		tty                           bool
		code                          int
	}{
		{name: "output", script: "echo out; echo err >&2", out: "out\n", errOut: "err\n"},
		{name: "input", script: "cat", in: "hello\n", out: "hello\n"},
		{name: "terminal", script: "test -t 0 && echo hello", out: "hello\r\n", tty: true},
		{name: "exit code", script: "exit 42", code: 42},
	} {
		for _, protocol := range protocols() {
			t.Run(tt.name+" "+protocol, func(t *testing.T) {
				r, err := rs.Exec(t.Context(), &runtimeapi.ExecRequest{
					ContainerId: id, Cmd: []string{"sh", "-c", tt.script}, Stdin: tt.in != "" || tt.tty, Stdout: true, Stderr: !tt.tty, Tty: tt.tty,
				})
				if err != nil {
					t.Fatal(err)
				}
				var out, errOut bytes.Buffer
				o := remotecommand.StreamOptions{Stdout: &out, Tty: tt.tty}
				if !tt.tty {
					o.Stderr = &errOut
				}
				if tt.in != "" {
					o.Stdin = strings.NewReader(tt.in)
				}
				if tt.tty { // a person does not close it
					person, stdin := io.Pipe()
					defer func() { _ = stdin.Close() }()
					o.Stdin = person
				}
				err = executors(t, reach(t, r.GetUrl()))[protocol].StreamWithContext(t.Context(), o)
				code := 0
				if exit, ok := err.(utilexec.ExitError); ok { //nolint:errorlint // client-go's own way
					code, err = exit.ExitStatus(), nil
				}
				if err != nil || code != tt.code || out.String() != tt.out || errOut.String() != tt.errOut {
					t.Errorf("%q, %q, exit code %d, %v", out.String(), errOut.String(), code, err)
				}
			})
		}
	}
}

func TestAttach(t *testing.T) {
	p := newPod(t, nil)
	for _, protocol := range protocols() {
		id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
			c.Command, c.Stdin, c.StdinOnce = []string{"sh"}, true, true
		})
		r, err := rs.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var out, errOut bytes.Buffer
		err = executors(t, reach(t, r.GetUrl()))[protocol].StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: strings.NewReader("echo hello\necho oh >&2\nexit 0\n"), Stdout: &out, Stderr: &errOut,
		})
		if err != nil || out.String() != "hello\n" || errOut.String() != "oh\n" {
			t.Errorf("%s: %q, %q, %v", protocol, out.String(), errOut.String(), err)
		}
		p.exited(id)
	}
}

// dialer speaks one protocol of a port forwarding.
func dialer(t *testing.T, protocol string, u *url.URL) httpstream.Dialer {
	t.Helper()
	if protocol == "websocket" {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{Host: u.String()})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
}

func TestPortForward(t *testing.T) {
	for _, protocol := range protocols() {
		for _, host := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, host %t", protocol, host), func(t *testing.T) { forwards(t, protocol, host) })
		}
	}
}

// forwards reads a page through a forwarded port, of a pod with a network of its own or with the node's.
func forwards(t *testing.T, protocol string, host bool) {
	t.Helper()
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		if host {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		}
	})
	p.start(server)
	status, err := rs.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	ip := node.IP4
	if !host {
		ip = status.GetStatus().GetNetwork().GetIp()
	}
	p.answers(net.JoinHostPort(ip, "8080")) // a connection that is refused may end the whole session
	r, err := rs.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	dialer := dialer(t, protocol, reach(t, r.GetUrl()))
	stop, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	fw, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { failed <- fw.ForwardPorts() }()
	defer func() {
		close(stop)
		if err := <-failed; err != nil {
			t.Log(err)
		}
	}()
	select {
	case <-ready:
	case err := <-failed:
		failed <- err
		t.Fatal(err)
	}
	ports, err := fw.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	page, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/healthz", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(page.Body)
	if err = errors.Join(err, page.Body.Close()); err != nil || string(body) != "ok\n" {
		t.Errorf("answer %q, %v", body, err)
	}
}
