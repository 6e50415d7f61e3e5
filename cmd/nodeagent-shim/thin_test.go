// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestStaysThin holds what the shim links: each package more is paid for by every pod of a node.
func TestStaysThin(t *testing.T) {
	allowed := []string{
		"github.com/nodeagent/nodeagent/cmd/nodeagent-shim", "github.com/nodeagent/nodeagent/cri/logs",
		"github.com/nodeagent/nodeagent/cri/shim/link", "github.com/containerd/errdefs", "golang.org/x/sys/unix",
		"google.golang.org/protobuf/encoding/protowire", "google.golang.org/protobuf/internal",
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		first, _, _ := strings.Cut(pkg, "/")
		standard := !strings.Contains(first, ".")
		if !standard && !slices.ContainsFunc(allowed, func(a string) bool { return pkg == a || strings.HasPrefix(pkg, a+"/") }) {
			t.Errorf("links %s", pkg)
		}
		if slices.Contains([]string{"net/http", "crypto/tls", "text/template", "log/slog"}, pkg) {
			t.Errorf("links %s", pkg)
		}
	}
}

func TestSocketPath(t *testing.T) {
	for in, want := range map[string]string{"unix:///a/b": "/a/b", "/a/b": "/a/b", "": ""} {
		if got := socketPath(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}
