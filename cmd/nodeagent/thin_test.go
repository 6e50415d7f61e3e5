// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMethodsAreLinkedByNeed holds the program's size: a single call of a method
// by a name that is not constant (text/template does that) makes the linker
// keep every method of every type, 30 MB of them, of which a part is resident.
func TestMethodsAreLinkedByNeed(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", makeTags(t), "-ldflags=-s -w -dumpdep", "-o", os.DevNull, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Edges come in the order in which the linker follows them: the way to a
	// symbol is the first edge to it, and its first edge, and so on.
	from, lines, fault := map[string]string{}, bufio.NewScanner(out), ""
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		a, b, ok := strings.Cut(lines.Text(), " -> ")
		if !ok || fault != "" {
			continue
		}
		b, marks, _ := strings.Cut(b, " <")
		if _, seen := from[b]; !seen {
			from[b], _, _ = strings.Cut(a, " <")
		}
		if strings.Contains(marks, "ReflectMethod") {
			fault = b
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(from) < 1000 {
		t.Fatalf("the linker told of %d symbols only", len(from))
	}
	for s, depth := fault, 0; s != "" && depth < 40; s, depth = from[s], depth+1 {
		t.Errorf("%*s%s", depth, "", s)
	}
}

// makeTags are the tags that the program is built with.
func makeTags(t *testing.T) string {
	t.Helper()
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(makefile)) {
		if tags, ok := strings.CutPrefix(line, "TAGS    := "); ok {
			return strings.TrimSpace(tags)
		}
	}
	t.Fatal("Makefile: no TAGS")
	return ""
}

// TestLinksFewAPIGroups holds which groups of the Kubernetes API are linked, and
// that none of the packages is that once made up half of the program.
func TestLinksFewAPIGroups(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", makeTags(t), ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string]bool{"core/v1": true, "discovery/v1": true, "networking/v1": true, "storage/v1": true}
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		if group, ok := strings.CutPrefix(pkg, "k8s.io/api/"); ok && !groups[group] {
			t.Errorf("links the API group %s", group)
		}
		for _, heavy := range []string{
			"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers", "k8s.io/client-go/listers",
			"k8s.io/client-go/applyconfigurations", "k8s.io/client-go/discovery", "k8s.io/client-go/dynamic",
			"github.com/google/gnostic-models", "k8s.io/kube-openapi/pkg/util/proto", "html/template",
			"github.com/Microsoft/hcsshim", "github.com/grpc-ecosystem/grpc-gateway", "go.opentelemetry.io/otel/sdk/metric",
		} {
			if pkg == heavy || strings.HasPrefix(pkg, heavy+"/") {
				t.Errorf("links %s", pkg)
			}
		}
	}
}
