// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"
)

// configFile is the running daemon's.
const configFile = "/etc/nodeagent/config.yaml"

// handlers are those that the runtime says it has.
func handlers(t *testing.T) []string {
	t.Helper()
	r, err := rs.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, h := range r.GetRuntimeHandlers() {
		if h.GetName() != "" {
			out = append(out, h.GetName())
		}
	}
	return out
}

// said counts the lines of the daemon's log that have a text.
func said(t *testing.T, text string) int {
	t.Helper()
	return strings.Count(string(mustReadLog(t)), text)
}

// reload gives the daemon another configuration and waits until it says what became of it.
func reload(t *testing.T, file, answer string) {
	t.Helper()
	before := said(t, answer)
	if err := node.WriteFile(configFile, []byte(file)); err != nil {
		t.Fatal(err)
	}
	if err := node.Runtime.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t}
	p.eventually(func() error {
		if said(t, answer) == before {
			return fmt.Errorf("the daemon does not say %q", answer)
		}
		return nil
	})
}

// with is the daemon's configuration with more handlers and another level of its log.
func with(t *testing.T, old, level string, more map[string]any) string {
	t.Helper()
	cfg := map[string]any{}
	if err := yaml.Unmarshal([]byte(old), &cfg); err != nil {
		t.Fatal(err)
	}
	section := func(name string) map[string]any {
		m, ok := cfg[name].(map[string]any)
		if !ok {
			t.Fatalf("no %s in %s", name, old)
		}
		return m
	}
	known, ok := section("cri")["handlers"].(map[string]any)
	if !ok {
		t.Fatalf("no handlers in %s", old)
	}
	maps.Copy(known, more)
	section("log")["level"] = level
	out, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestReload changes handlers under a running daemon, and the pods that use them.
func TestReload(t *testing.T) {
	if !onNodeagent() {
		t.Skip("containerd does not reload")
	}
	if node.Runtime == nil {
		t.Skip("this daemon is systemd's, whose reload the room package of tests/machine tests")
	}
	old := string(mustRead(t, configFile))
	was := handlers(t)
	pid, starts := node.Runtime.PID()
	const done, refusal = `msg=reloaded `, `msg="reload refused`
	defer reload(t, old, done)
	reload(t, with(t, old, "info", map[string]any{
		"added": map[string]string{"type": "io.containerd.runc.v2"}, "shimmed": map[string]string{"type": "io.containerd.nodeagent.v1", "sandbox": "shim"},
	}), done)
	if got := handlers(t); !slices.Contains(got, "added") || !slices.Contains(got, "shimmed") || len(got) != len(was)+2 {
		t.Errorf("handlers %v", got)
	}
	for _, name := range []string{"added", "shimmed"} {
		t.Run(name, func(t *testing.T) {
			p := newHandledPod(t, name)
			id, _ := p.start(nil)
			if got := p.sh(id, "echo hello"); got != "hello" {
				t.Errorf("in a pod of handler %s: %q", name, got)
			}
			reload(t, old, refusal) // the pod would lose its runtime
			if got := handlers(t); !slices.Contains(got, name) {
				t.Errorf("handlers %v", got)
			}
			p.sh(id, "true")
		})
	}
	reload(t, with(t, old, "debug", map[string]any{"bad": map[string]string{"type": ""}}), refusal)
	reload(t, with(t, old, "nonsense", nil), refusal)
	reload(t, with(t, old, "debug", nil)+"node: {}\n", refusal)
	reload(t, old, done)
	if got := handlers(t); !slices.Equal(got, was) {
		t.Errorf("handlers %v, were %v", got, was)
	}
	if again, n := node.Runtime.PID(); again != pid || n != starts {
		t.Error("the daemon was started again")
	}
}
