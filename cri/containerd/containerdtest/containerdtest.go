// SPDX-License-Identifier: Apache-2.0

// Package containerdtest runs a private containerd for tests, with an image
// made on the fly from the machine's static busybox.
package containerdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// Busybox is the name of the image that Import makes.
const Busybox = "nodeagent.test/library/busybox:1"

// NeedRoot fails a test that needs root and has none, unless the environment says to skip it.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("NODEAGENT_SKIP_ROOT=1")
	}
	tb.Fatal("needs root; NODEAGENT_SKIP_ROOT=1 skips such tests")
}

// Bin is the directory of the binaries that `make deps` builds.
func Bin() string {
	cache := os.Getenv("NODEAGENT_CACHE")
	if cache == "" {
		cache = "/var/cache/nodeagent"
	}
	return filepath.Join(cache, "bin")
}

// Daemon is a private containerd.
type Daemon struct {
	Dir        string
	Config     containerd.Config
	supervisor *containerd.Supervisor
	log        *slog.Logger
}

// Start runs a containerd that ends with the test, and all that it runs.
func Start(tb testing.TB) *Daemon {
	tb.Helper()
	NeedRoot(tb)
	dir, err := os.MkdirTemp("", "na") //nolint:usetesting // short: sockets have a limit of 108 bytes
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // the users of user namespaces have to pass
		tb.Fatal(err)
	}
	tb.Setenv("PATH", Bin()+":"+os.Getenv("PATH"))
	cfg := containerd.Default()
	cfg.Address = filepath.Join(dir, "c.sock")
	cfg.Managed = true
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	cfg.Path = Bin()
	d := &Daemon{Dir: dir, Config: cfg, log: slog.New(slog.DiscardHandler)}
	tb.Cleanup(func() { d.remove(tb) })
	d.Run(tb)
	tb.Cleanup(func() { d.Stop(tb) })
	return d
}

// Run starts the daemon again after Stop.
func (d *Daemon) Run(tb testing.TB) {
	tb.Helper()
	s, err := containerd.NewSupervisor(d.Config, containerd.SupervisorDeps{Log: d.log, Dir: filepath.Join(d.Dir, "run")})
	if err != nil {
		tb.Fatal(err)
	}
	if err := s.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	d.supervisor = s
}

// Stop ends the daemon; containers go on.
func (d *Daemon) Stop(tb testing.TB) {
	tb.Helper()
	if err := d.supervisor.Stop(context.WithoutCancel(tb.Context())); err != nil {
		tb.Errorf("stop containerd: %v", err)
	}
}

// Client connects; the connection ends with the test.
func (d *Daemon) Client(tb testing.TB) *containerd.Client {
	tb.Helper()
	c, err := containerd.New(d.Config, containerd.Deps{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.Start(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(context.WithoutCancel(tb.Context())); err != nil {
			tb.Errorf("close containerd client: %v", err)
		}
	})
	return c
}

// remove detaches what is mounted below the directory and removes it; what a
// test left running there is a failure.
func (d *Daemon) remove(tb testing.TB) {
	tb.Helper()
	for _, p := range endLeft(d.Dir) {
		tb.Errorf("left running: %s", p)
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], d.Dir+"/") {
			tb.Errorf("left mounted: %s", f[4])
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(d.Dir); err != nil {
		tb.Errorf("remove %s: %v", d.Dir, err)
	}
}

// logWriter sends log lines to the test's log.
type logWriter struct{ tb testing.TB }

func (w logWriter) Write(p []byte) (int, error) {
	if w.tb.Context().Err() == nil { // not after the test's end
		w.tb.Logf("%s", bytes.TrimRight(p, "\n"))
	}
	return len(p), nil
}

// Log is a logger that writes into the test's log.
func Log(tb testing.TB) *slog.Logger {
	tb.Helper()
	if _, ok := tb.(*testing.F); ok {
		return slog.New(slog.DiscardHandler) // a fuzz test's log is closed to its targets
	}
	return slog.New(slog.NewTextHandler(logWriter{tb}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Import makes the image Busybox in the daemon, unpacked.
func (d *Daemon) Import(tb testing.TB, change func(*ocispec.Image)) {
	tb.Helper()
	d.load(tb, ociArchive(tb, Busybox, busyboxLayer(tb), nil, change))
}

// ImportLayer makes an image of one layer, a tar, with annotations of its manifest.
func (d *Daemon) ImportLayer(tb testing.TB, name string, layer []byte, annotations map[string]string) {
	tb.Helper()
	d.load(tb, ociArchive(tb, name, layer, annotations, nil))
}

// load puts the images of an archive into the daemon, unpacked.
func (d *Daemon) load(tb testing.TB, archive []byte) {
	tb.Helper()
	c, err := client.New(d.Config.Address, client.WithDefaultNamespace(containerd.Namespace))
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // the test's own connection
	imgs, err := c.Import(tb.Context(), bytes.NewReader(archive))
	if err != nil {
		tb.Fatalf("import image: %v", err)
	}
	for _, i := range imgs {
		if err := client.NewImage(c, i).Unpack(tb.Context(), d.Config.Snapshotter); err != nil {
			tb.Fatalf("unpack image: %v", err)
		}
	}
}

// ociArchive is an OCI image layout of one layer.
func ociArchive(tb testing.TB, name string, layer []byte, annotations map[string]string, change func(*ocispec.Image)) []byte {
	tb.Helper()
	var img ocispec.Image
	now := time.Unix(1700000000, 0).UTC()
	img.Created, img.Architecture, img.OS = &now, "amd64", "linux"
	img.Config.Env = []string{"PATH=/bin"}
	img.Config.Cmd = []string{"/bin/sh"}
	img.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}
	if change != nil {
		change(&img)
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	blob := func(mediaType string, b []byte) ocispec.Descriptor {
		d := digest.FromBytes(b)
		files["blobs/sha256/"+d.Encoded()] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: blob(ocispec.MediaTypeImageConfig, encode(img)),
		Layers: []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayer, layer)}, Annotations: annotations,
	}
	d := blob(ocispec.MediaTypeImageManifest, encode(m))
	d.Annotations = map[string]string{"io.containerd.image.name": name}
	files["index.json"] = encode(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d},
	})
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for n, b := range files {
		put(tb, w, &tar.Header{Name: n, Mode: 0o644, Size: int64(len(b))}, b)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func busyboxLayer(tb testing.TB) []byte {
	tb.Helper()
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		tb.Fatalf("the package busybox-static is needed: %v", err)
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, d := range []string{"bin", "etc", "root", "data", "tmp", "dev", "proc", "sys"} {
		put(tb, w, &tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755}, nil)
	}
	put(tb, w, &tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(bb))}, bb)
	for n := range strings.FieldsSeq("sh sleep cat echo ls id touch mkdir rm ps kill hostname mount umount dd head tail seq true false env stat tr wc nc httpd wget ip sysctl printf chmod chown readlink df sync test yes") {
		put(tb, w, &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + n, Linkname: "busybox", Mode: 0o777}, nil)
	}
	text := func(name, s string) {
		put(tb, w, &tar.Header{Name: name, Mode: 0o644, Size: int64(len(s))}, []byte(s))
	}
	text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\nalice:x:1000:1000::/:/bin/sh\n")
	text("etc/group", "root:x:0:\nalice:x:1000:\nteam:x:2000:alice\nnogroup:x:65534:\n")
	text("data/file", "from the image\n")
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func put(tb testing.TB, w *tar.Writer, h *tar.Header, b []byte) {
	tb.Helper()
	if err := w.WriteHeader(h); err != nil {
		tb.Fatal(err)
	}
	if _, err := io.Copy(w, bytes.NewReader(b)); err != nil {
		tb.Fatal(err)
	}
}

// Name makes short names that differ between tests run side by side.
func Name(tb testing.TB) string {
	tb.Helper()
	sum := sha256.Sum256([]byte(tb.Name() + fmt.Sprint(os.Getpid())))
	return fmt.Sprintf("t%x", sum[:4])
}
