// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func spec(args ...string) *specs.Spec { return &specs.Spec{Process: &specs.Process{Args: args}} }

// paths are the hooks of a stage.
func paths(hooks []specs.Hook) string {
	var out []string
	for _, h := range hooks {
		out = append(out, h.Path)
	}
	return strings.Join(out, " ")
}

func TestConditions(t *testing.T) {
	marked := Container{Annotations: map[string]string{"example.com/a": "yes", "b": "no"}}
	for _, tc := range []struct {
		name, when string
		args       []string
		c          Container
		want       bool
	}{
		{"always", `"always":true`, nil, Container{}, true},
		{"never", `"always":false`, nil, Container{}, false},
		{"annotation", `"annotations":{"^example\\.com/":"^yes$"}`, nil, marked, true},
		{"annotation's value", `"annotations":{"^b$":"^yes$"}`, nil, marked, false},
		{"one of two annotations", `"annotations":{"^b$":"no","^c$":".*"}`, nil, marked, false},
		{"command", `"commands":["^/bin/ls$","sh$"]`, []string{"/bin/sh"}, Container{}, true},
		{"other command", `"commands":["^/bin/ls$"]`, []string{"/bin/sh", "/bin/ls"}, Container{}, false},
		{"no command", `"commands":[".*"]`, nil, Container{}, false},
		{"bind mounts", `"hasBindMounts":true`, nil, Container{HasBindMounts: true}, true},
		{"no bind mounts", `"hasBindMounts":true`, nil, Container{}, false},
		{"all must hold", `"always":true,"commands":["ls"]`, []string{"sh"}, Container{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, err := parse([]byte(`{"version":"1.0.0","hook":{"path":"/h"},"when":{` + tc.when + `},"stages":["prestart"]}`))
			if err != nil {
				t.Fatal(err)
			}
			if got := h.matches(spec(tc.args...), tc.c); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestDirectories(t *testing.T) {
	vendor, admin := t.TempDir(), t.TempDir()
	d := New([]string{vendor, admin, "/nowhere"})
	inject := func() *specs.Hooks {
		t.Helper()
		s := spec("x")
		if err := d.Inject(s, Container{}); err != nil {
			t.Fatal(err)
		}
		if s.Hooks == nil {
			return &specs.Hooks{}
		}
		return s.Hooks
	}
	if h := inject(); paths(h.CreateRuntime) != "" {
		t.Error("hooks out of nowhere")
	}
	hook := func(path string) string {
		return `{"version":"1.0.0","hook":{"path":"` + path + `","timeout":3},"when":{"always":true},"stages":["createRuntime","poststop"]}`
	}
	write(t, vendor, "20-b.json", hook("/vendor/b"))
	write(t, vendor, "10-a.json", hook("/vendor/a"))
	write(t, vendor, "README", "no hook")
	if h := inject(); paths(h.CreateRuntime) != "/vendor/a /vendor/b" || paths(h.Poststop) != "/vendor/a /vendor/b" {
		t.Errorf("got %v", h)
	}
	write(t, admin, "20-b.json", hook("/admin/b"))
	if h := inject(); paths(h.CreateRuntime) != "/vendor/a /admin/b" {
		t.Errorf("got %v", h)
	}
	write(t, admin, "20-b.json", hook("/admin/changed"))
	if h := inject(); paths(h.CreateRuntime) != "/vendor/a /admin/changed" {
		t.Errorf("got %v", h)
	}
	write(t, admin, "30-c.json", "{")
	err := d.Inject(spec("x"), Container{})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "30-c.json") {
		t.Errorf("got %v", err)
	}
}

func TestFaults(t *testing.T) {
	_, err := parse([]byte(`{"version":"0.1.0","hook":{"path":"h","timeout":0},"when":{"annotations":{"(":"x"},"commands":["["]},"stages":["prestart","later"]}`))
	for _, want := range []string{"version: ", "hook.path: ", "hook.timeout: ", "when.annotations: ", "when.commands: ", "stages[1]: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
	for _, text := range []string{
		`{"version":"1.0.0","hook":{"path":"/h"},"when":{},"stages":["prestart"]}`,
		`{"version":"1.0.0","hook":{"path":"/h"},"when":{"always":true},"stages":[]}`,
		`{"version":"1.0.0","hook":{"path":"/h"},"when":{"allways":true},"stages":["prestart"]}`,
	} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
