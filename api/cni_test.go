// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// fakeNetwork answers with err, or with one attachment; it keeps what it was asked.
type fakeNetwork struct {
	err     error
	full    error
	req     cni.Request
	network string
	valid   []cni.Key
}

func (f *fakeNetwork) Attach(_ context.Context, req cni.Request) (*cni.Result, error) {
	f.req = req
	if f.err != nil {
		return nil, f.err
	}
	return &cni.Result{
		Key: req.Key, NetNS: req.NetNS, HostIfName: "nap0", MTU: 1500,
		MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}, Gateways: []netip.Addr{netip.MustParseAddr("169.254.1.1")},
	}, nil
}

func (f *fakeNetwork) Detach(context.Context, cni.Key) error { return f.err }

func (f *fakeNetwork) Check(_ context.Context, req cni.Request) error {
	f.req = req
	return f.err
}

func (f *fakeNetwork) Collect(_ context.Context, network string, valid []cni.Key) error {
	f.network, f.valid = network, valid
	return f.err
}

func (f *fakeNetwork) Status(context.Context) error { return f.err }
func (f *fakeNetwork) Capacity() error              { return f.full }

func call(verb, conf string) shim.Call {
	return shim.Call{Verb: verb, ContainerID: "id", NetNS: "/ns", IfName: "eth0", Config: json.RawMessage(conf)}
}

const conf = `{"cniVersion":"1.1.0","name":"pods","prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/ns"}],` +
	`"ips":[{"interface":0,"address":"10.0.0.2/32"}]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`

// TestErrorsHaveTheirCodes: one code per cause, and another for STATUS.
func TestErrorsHaveTheirCodes(t *testing.T) {
	for _, tc := range []struct {
		verb string
		err  error
		code int
	}{
		{shim.Add, cni.ErrInvalid, shim.CodeConfig},
		{shim.Add, cni.ErrNetNS, shim.CodeNetNS},
		{shim.Add, fs.ErrNotExist, shim.CodeNetNS},
		{shim.Add, cni.ErrExhausted, shim.CodeTryAgain},
		{shim.Add, cni.ErrNotReady, shim.CodeTryAgain},
		{shim.Add, cni.ErrExists, shim.CodeExists},
		{shim.Add, context.DeadlineExceeded, shim.CodeTryAgain},
		{shim.Add, context.Canceled, shim.CodeTryAgain},
		{shim.Add, errors.New("other"), shim.CodeInternal},
		{shim.Del, cni.ErrNotReady, shim.CodeTryAgain},
		{shim.Check, cni.ErrUnknown, shim.CodeUnknown},
		{shim.Check, cni.ErrBroken, shim.CodeBroken},
		{shim.GC, errors.Join(errors.New("one"), cni.ErrNotReady), shim.CodeTryAgain},
		{shim.Status, cni.ErrNotReady, shim.CodeNotAvailable},
	} {
		f := &fakeNetwork{err: fmt.Errorf("wrapped: %w", tc.err)}
		_, err := api.CNICall(f, slog.New(slog.DiscardHandler))(t.Context(), call(tc.verb, conf))
		e, ok := errors.AsType[*shim.Error](err)
		if !ok || e.Code != tc.code || e.CNIVersion != "1.1.0" || !strings.Contains(e.Details, tc.err.Error()) {
			t.Errorf("%s: %v = %+v, want code %d", tc.verb, tc.err, e, tc.code)
		}
	}
}

// TestFullNodeIsNotAvailable: STATUS says that a full node cannot serve ADD.
func TestFullNodeIsNotAvailable(t *testing.T) {
	f := &fakeNetwork{full: cni.ErrExhausted}
	_, err := api.CNICall(f, slog.New(slog.DiscardHandler))(t.Context(), call(shim.Status, conf))
	if e, ok := errors.AsType[*shim.Error](err); !ok || e.Code != shim.CodeNotAvailable {
		t.Errorf("STATUS = %v, want code %d", err, shim.CodeNotAvailable)
	}
}

func TestCallsAreUnderstood(t *testing.T) {
	f := &fakeNetwork{}
	do := api.CNICall(f, slog.New(slog.DiscardHandler))
	add := call(shim.Add, `{"cniVersion":"1.0.0","name":"pods","runtimeConfig":{
		"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"TCP"},{"hostPort":0,"containerPort":1,"protocol":"tcp"},
			{"hostPort":53,"containerPort":53,"protocol":"udp","hostIP":"::"}],
		"bandwidth":{"ingressRate":1000,"ingressBurst":2000},
		"io.kubernetes.cri.pod-annotations":{"a":"b"}}}`)
	add.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u;IP=10.0.0.9;OTHER=x"
	if _, err := do(t.Context(), add); err != nil {
		t.Fatal(err)
	}
	want := `{"containerID":"id","ifName":"eth0","network":"pods","netns":"/ns",` +
		`"pod":{"namespace":"ns","name":"web","uid":"u","annotations":{"a":"b"}},` +
		`"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"},{"hostPort":53,"containerPort":53,"protocol":"udp"}],` +
		`"bandwidth":{"ingressRate":1000,"ingressBurst":2000},"addrs":["10.0.0.9"]}`
	if got, err := json.Marshal(f.req); err != nil || string(got) != want {
		t.Errorf("request\n%s, want\n%s", got, want)
	}
	if _, err := do(t.Context(), call(shim.Check, conf)); err != nil || fmt.Sprint(f.req.Addrs) != "[10.0.0.2]" {
		t.Errorf("CHECK = %v, addresses %v", err, f.req.Addrs)
	}
	if _, err := do(t.Context(), call(shim.GC, conf)); err != nil || f.network != "pods" || fmt.Sprint(f.valid) != "[a/eth0]" {
		t.Errorf("GC = %v, network %q, valid %v", err, f.network, f.valid)
	}
}

// TestGarbageOnTheSocket gets an error that a runtime understands.
func TestGarbageOnTheSocket(t *testing.T) {
	routes := api.CNIRoutes(&fakeNetwork{}, slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		body string
		code int
	}{
		{"", shim.CodeDecode},
		{"{", shim.CodeDecode},
		{`{"verb":"DEL","config":{}}`, shim.CodeDecode},
		{`{"verb":"ADD"}`, shim.CodeDecode},
		{`{"verb":"ADD","config":7}`, shim.CodeDecode},
		{strings.Repeat("x", 5<<20), shim.CodeIO},
	} {
		w := httptest.NewRecorder()
		routes["POST /v1/cni/add"].ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/cni/add", strings.NewReader(tc.body)))
		var e shim.Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Code != tc.code || w.Code == http.StatusOK {
			t.Errorf("%.40q: %d %s, want code %d", tc.body, w.Code, w.Body, tc.code)
		}
	}
}

// FuzzCNICall: whatever the configuration is, the answer is a result or an
// error with a code.
func FuzzCNICall(f *testing.F) {
	f.Add(shim.Add, "K8S_POD_NAME=a", []byte(conf))
	f.Add(shim.Check, "", []byte(conf))
	f.Add(shim.GC, "IP=1.2.3.4", []byte(`{"cniVersion":"0.3.1","name":"x","cni.dev/attachments":null}`))
	f.Add(shim.Add, "", []byte(`{"cniVersion":"0.4.0","runtimeConfig":{"ips":["1/2"],"mac":"x","ipRanges":[[{"subnet":"::/0"}]]}}`))
	do := api.CNICall(&fakeNetwork{}, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, verb, args string, config []byte) {
		c := call(verb, string(config))
		c.Args = args
		out, err := do(t.Context(), c)
		if e, ok := errors.AsType[*shim.Error](err); err != nil && (!ok || e.Code == 0) {
			t.Errorf("error %v has no code", err)
		}
		if err == nil && len(out) > 0 && !json.Valid(out) {
			t.Errorf("printed %q", out)
		}
	})
}
