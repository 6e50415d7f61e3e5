// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// freePort is a port that nobody listens on.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()                                  //nolint:errcheck // it was only to find a port
	return l.Addr().(*net.TCPAddr).AddrPort().Port() //nolint:errcheck // it is TCP
}

func get(t *testing.T, port uint16) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // all is read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealth(t *testing.T) {
	h := health{servers: map[types.NamespacedName]*healthServer{}}
	name := types.NamespacedName{Namespace: "ns", Name: "svc"}
	set := func(want service.Health) {
		t.Helper()
		if err := h.set(name, want); err != nil {
			t.Fatal(err)
		}
	}
	one, two := freePort(t), freePort(t)
	set(service.Health{Port: one, Local: 2})
	if code, body := get(t, one); code != http.StatusOK || !strings.Contains(body, `"localEndpoints":2`) {
		t.Errorf("with endpoints: %d %s", code, body)
	}
	set(service.Health{Port: one})
	if code, _ := get(t, one); code != http.StatusServiceUnavailable {
		t.Errorf("without endpoints: %d", code)
	}
	set(service.Health{Port: two, Local: 1})
	if code, body := get(t, one); code != 0 {
		t.Errorf("the old port answers: %d %s", code, body)
	}
	if err := h.set(types.NamespacedName{Name: "other"}, service.Health{Port: two}); err == nil {
		t.Error("two services have one port")
	}
	set(service.Health{})
	set(service.Health{})
	if code, body := get(t, two); code != 0 {
		t.Errorf("a removed service answers: %d %s", code, body)
	}
	set(service.Health{Port: one, Local: 1})
	if err := h.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, one); code != 0 {
		t.Errorf("answers after the end: %d %s", code, body)
	}
}
