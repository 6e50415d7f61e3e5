// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGolden builds whole specs. An archive holds the CRI messages (laid over the fixture's), optionally facts.json, and the
// spec they become, or the error.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in, _ := fixture()
	sandbox := false
	var want []byte
	for _, f := range archive.Files {
		switch f.Name {
		case "container.json":
			err = overlay(in.Config, f.Data)
		case "pod.json":
			err = overlay(in.Sandbox.Config, f.Data)
		case "image.json":
			err = json.Unmarshal(f.Data, &in.Image.Config)
		case "facts.json":
			err = json.Unmarshal(f.Data, &facts{&in.Host, &in.Handler, &in.Policy, &in.Sandbox, &in.Image})
		case "sandbox":
			sandbox = true
		case "want.json":
			want = f.Data
		default:
			t.Fatalf("%s: what is that?", f.Name)
		}
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	got := encode(t, in, sandbox)
	if *update {
		rewrite(t, file, archive, got)
		return
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func overlay(to proto.Message, raw []byte) error {
	m := to.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal(raw, m); err != nil {
		return err
	}
	proto.Merge(to, m)
	return nil
}

type facts struct {
	Host    *spec.Host
	Handler *spec.Handler
	Policy  *spec.Policy
	Sandbox *spec.Sandbox
	Image   *spec.Image
}

func encode(t *testing.T, in spec.Input, sandbox bool) []byte {
	t.Helper()
	var out *spec.Output
	var err error
	if sandbox {
		out, err = spec.BuildSandbox(spec.SandboxInput{
			Sandbox: in.Sandbox, Args: []string{"/init"}, Host: in.Host, Handler: in.Handler, Policy: in.Policy, System: in.System,
		})
	} else {
		out, err = spec.Build(in)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The default profile is the library's; its length is not ours to hold.
	if c := out.Spec.Linux.Seccomp; c != nil && len(c.Syscalls) > 5 {
		c.Syscalls = nil
	}
	raw, err := json.MarshalIndent(map[string]any{"spec": out.Spec, "user": out.User, "stopSignal": out.StopSignal, "labels": out.Labels}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(raw, '\n')
}

func rewrite(t *testing.T, file string, a *txtar.Archive, got []byte) {
	t.Helper()
	kept := a.Files[:0]
	for _, f := range a.Files {
		if f.Name != "want.json" {
			kept = append(kept, f)
		}
	}
	a.Files = append(kept, txtar.File{Name: "want.json", Data: got})
	if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSameInputSameSpec also proves that Build leaves its input alone.
func TestSameInputSameSpec(t *testing.T) {
	in, _ := fixture()
	in.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/srv"}}
	in.Handler.Base = spec.DefaultSpec()
	first := encode(t, in, false)
	if second := encode(t, in, false); !bytes.Equal(first, second) {
		t.Errorf("second build differs:\n%s\n%s", first, second)
	}
	base, err := json.Marshal(in.Handler.Base)
	if err != nil {
		t.Fatal(err)
	}
	untouched, err := json.Marshal(spec.DefaultSpec())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(base, untouched) {
		t.Error("Build changed the handler's base spec")
	}
}

func build(t *testing.T, in spec.Input) *specs.Spec {
	t.Helper()
	out, err := spec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return out.Spec
}

// BenchmarkBuild is the cost of one container's spec, as it is encoded for the OCI runtime.
func BenchmarkBuild(b *testing.B) {
	in, _ := fixture()
	in.Config.Linux.SecurityContext.Seccomp = profile(runtimeapi.SecurityProfile_RuntimeDefault, "")
	for b.Loop() {
		out, err := spec.Build(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(out.Spec); err != nil {
			b.Fatal(err)
		}
	}
}
