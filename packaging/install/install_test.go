// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/packaging"
)

// fakeHost is a node with or without systemd.
type fakeHost struct {
	systemd bool
	calls   []string
	fail    map[string]error
}

func (h *fakeHost) HasSystemd() bool { return h.systemd }

func (h *fakeHost) Systemctl(_ context.Context, args ...string) error {
	call := strings.Join(args, " ")
	h.calls = append(h.calls, call)
	err := h.fail[args[0]]
	delete(h.fail, args[0])
	return err
}

func (h *fakeHost) Run(_ context.Context, argv []string, _, _ io.Writer) error {
	h.calls = append(h.calls, strings.Join(argv, " "))
	return nil
}

// FailNext makes the next call of a systemctl verb fail.
func (h *fakeHost) FailNext(verb string, err error) {
	if h.fail == nil {
		h.fail = map[string]error{}
	}
	h.fail[verb] = err
}

// node is a node of a test with the programs of a version.
type node struct {
	t    *testing.T
	opts Options
	host *fakeHost
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, host: &fakeHost{systemd: true}, opts: Options{
		Root: t.TempDir(), Mode: ModeHost, Version: "v1", Programs: t.TempDir(),
	}}
	n.programs("one")
	return n
}

func (n *node) programs(content string) {
	n.t.Helper()
	for _, p := range []string{packaging.Daemon, packaging.Shim, packaging.Plugin} {
		n.must(os.WriteFile(filepath.Join(n.opts.Programs, p), []byte(p+content), 0o755))
	}
}

// file writes a file outside of the node and returns its path.
func (n *node) file(data string) string {
	n.t.Helper()
	path := filepath.Join(n.t.TempDir(), "file")
	n.must(os.WriteFile(path, []byte(data), 0o600))
	return path
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) installer() *Installer {
	n.t.Helper()
	i, err := New(n.opts, Deps{Host: n.host, Env: func(k string) string {
		return map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}[k]
	}})
	n.must(err)
	return i
}

func (n *node) apply() string {
	n.t.Helper()
	r, err := n.installer().Apply(n.t.Context())
	n.must(err)
	return summary(r)
}

func (n *node) remove(purge bool) string {
	n.t.Helper()
	r, err := n.installer().Remove(n.t.Context(), purge)
	n.must(err)
	return summary(r)
}

func (n *node) read(path string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.opts.Root, path))
	n.must(err)
	return string(data)
}

func (n *node) calls() string {
	calls := strings.Join(n.host.calls, "; ")
	n.host.calls = nil
	return calls
}

// left are the files on the node.
func (n *node) left() []string {
	var out []string
	n.must(filepath.WalkDir(n.opts.Root, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, strings.TrimPrefix(path, n.opts.Root))
		}
		return err
	}))
	return out
}

// summary is a report in one line, without what did not change.
func summary(r *Report) string {
	var out []string
	for _, c := range r.Changes {
		if c.Action != "unchanged" {
			out = append(out, c.Action+" "+c.Path)
		}
	}
	return strings.Join(out, "\n")
}

func TestApplyUpgradeRemove(t *testing.T) {
	n := newNode(t)
	want := strings.Join([]string{
		"created /opt/nodeagent/bin/nodeagent", "created /opt/nodeagent/bin/nodeagent-shim", "created /opt/cni/bin/nodeagent-cni",
		"created /etc/nodeagent/config.yaml", "created /etc/systemd/system/nodeagent.service",
	}, "\n")
	if got := n.apply(); got != want {
		t.Errorf("first:\n%s", got)
	}
	if got := n.calls(); got != "daemon-reload; enable nodeagent.service; restart nodeagent.service" {
		t.Errorf("systemctl %s", got)
	}
	if unit := n.read(packaging.UnitPath); !strings.Contains(unit, "ExecStart=/opt/nodeagent/bin/nodeagent run") {
		t.Errorf("unit:\n%s", unit)
	}
	if got := n.apply(); got != "" {
		t.Errorf("again:\n%s", got)
	}
	if got := n.calls(); got != "enable nodeagent.service; start nodeagent.service" {
		t.Errorf("systemctl %s", got)
	}
	n.programs("two")
	n.opts.Version, n.opts.Kubelet = "v2", true
	if got := n.apply(); !strings.Contains(got, "updated /opt/nodeagent/bin/nodeagent\n") ||
		!strings.Contains(got, "created "+packaging.KubeletUnitDropIn) {
		t.Errorf("upgrade:\n%s", got)
	}
	n.opts.Kubelet = false
	if got := n.apply(); !strings.Contains(got, "removed "+packaging.KubeletUnitDropIn) {
		t.Errorf("without the kubelet:\n%s", got)
	}
	n.calls()
	n.remove(false)
	if got := n.calls(); got != "disable --now nodeagent.service; daemon-reload" {
		t.Errorf("systemctl %s", got)
	}
	if left := n.left(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if got := n.remove(false); got != "" {
		t.Errorf("removed twice:\n%s", got)
	}
}

func TestRemoveKeepsWhatAPersonChanged(t *testing.T) {
	n := newNode(t)
	n.opts.Kubelet = true
	n.apply()
	n.must(os.WriteFile(filepath.Join(n.opts.Root, packaging.ConfigPath), []byte("mine"), 0o644))
	if got := n.apply(); got != "kept "+packaging.ConfigPath {
		t.Errorf("applied over a person's configuration:\n%s", got)
	}
	changed := filepath.Join(n.opts.Root, packaging.KubeletConfigDropIn)
	n.must(os.WriteFile(changed, []byte("mine"), 0o644))
	if got := n.remove(false); !strings.Contains(got, "kept "+packaging.KubeletConfigDropIn) {
		t.Errorf("removed:\n%s", got)
	}
	if n.read(packaging.KubeletConfigDropIn) != "mine" || n.read(packaging.ConfigPath) != "mine" {
		t.Error("a changed file is gone")
	}
}

func TestIdentityAndConfiguration(t *testing.T) {
	n := newNode(t)
	n.opts.Token, n.opts.CA = n.file("secret"), n.file("ca")
	n.opts.Config = n.file("kubernetes: {qps: 7}\nnetwork: {enabled: true}\n")
	n.opts.Set = []string{"network.enabled=false", "storage.enabled=false"}
	n.opts.Node = "n1"
	n.apply()
	cfg := n.read(packaging.ConfigPath)
	for _, want := range []string{"qps: 7", "kubeconfig: " + packaging.KubeconfigPath, "name: n1", "network:\n    enabled: true", "storage:\n    enabled: false"} {
		if !strings.Contains(cfg, want) {
			t.Errorf("configuration lacks %q:\n%s", want, cfg)
		}
	}
	if kc := n.read(packaging.KubeconfigPath); !strings.Contains(kc, "server: https://10.96.0.1:443") || strings.Contains(kc, "secret") {
		t.Errorf("kubeconfig:\n%s", kc)
	}
	info, err := os.Stat(filepath.Join(n.opts.Root, tokenPath))
	n.must(err)
	if info.Mode().Perm() != 0o600 || n.read(tokenPath) != "secret" {
		t.Errorf("token has mode %v", info.Mode())
	}
	n.calls()
	// A new token is put on the node, and the daemon, which reads it again, stays.
	n.must(os.WriteFile(n.opts.Token, []byte("newer"), 0o600))
	if got := n.apply(); got != "updated "+tokenPath {
		t.Errorf("new token:\n%s", got)
	}
	if got := n.calls(); strings.Contains(got, "restart") {
		t.Errorf("systemctl %s", got)
	}
	// The kubelet's server is better than the ClusterIP.
	n.must(os.MkdirAll(filepath.Join(n.opts.Root, "etc/kubernetes"), 0o755))
	n.must(os.WriteFile(filepath.Join(n.opts.Root, "etc/kubernetes/kubelet.conf"),
		[]byte("clusters: [{cluster: {server: https://192.0.2.1:6443}}]"), 0o600))
	if got := n.apply(); got != "updated "+packaging.KubeconfigPath {
		t.Errorf("kubelet's server:\n%s", got)
	}
}

func TestModePod(t *testing.T) {
	n := newNode(t)
	n.apply()
	n.calls()
	n.opts.Mode, n.opts.CNIBinDir = ModePod, "/usr/lib/cni"
	got := n.apply()
	for _, want := range []string{"removed /etc/systemd/system/nodeagent.service", "removed /opt/nodeagent/bin/nodeagent-shim", "removed /opt/cni/bin/nodeagent-cni", "created /usr/lib/cni/nodeagent-cni"} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %q:\n%s", want, got)
		}
	}
	if got := n.calls(); got != "disable --now nodeagent.service" {
		t.Errorf("systemctl %s", got)
	}
	if cfg := n.read(packaging.ConfigPath); !strings.Contains(cfg, "cri:\n    enabled: false") || !strings.Contains(cfg, "conflist:\n        enabled: true") {
		t.Errorf("configuration:\n%s", cfg)
	}
	n.must(n.installer().RunDaemon(t.Context()))
	if got := n.calls(); got != "/opt/nodeagent/bin/nodeagent run --config /etc/nodeagent/config.yaml" {
		t.Errorf("ran %s", got)
	}
}

// What fails half way is finished by the next run, and removed by a removal.
func TestFailureIsFinishedLater(t *testing.T) {
	n := newNode(t)
	n.host.FailNext("restart", errors.New("no"))
	if _, err := n.installer().Apply(t.Context()); err == nil {
		t.Fatal("the failure was not reported")
	}
	n.calls()
	n.apply()
	if got := n.calls(); !strings.Contains(got, "start nodeagent.service") {
		t.Errorf("systemctl %s", got)
	}
	// A directory where a file should be.
	m := newNode(t)
	m.must(os.MkdirAll(filepath.Join(m.opts.Root, packaging.UnitPath, "x"), 0o755))
	if _, err := m.installer().Apply(t.Context()); err == nil || !strings.Contains(err.Error(), packaging.UnitPath) {
		t.Errorf("error %v", err)
	}
	m.must(os.RemoveAll(filepath.Join(m.opts.Root, packaging.UnitPath)))
	m.remove(true)
	if left := m.left(); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

// A link on the node leads nowhere outside of its root.
func TestLinksStayWithinTheNode(t *testing.T) {
	n := newNode(t)
	outside := t.TempDir()
	n.must(os.Symlink(outside, filepath.Join(n.opts.Root, "opt")))
	if _, err := n.installer().Apply(t.Context()); err == nil {
		t.Error("wrote through a link out of the node")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("outside: %v", entries)
	}
}

func TestBadOptions(t *testing.T) {
	_, err := New(Options{
		Root: "host", Programs: "", Mode: "both", Set: []string{"a..b=1", "x"}, Token: "/t", BinDir: "bin",
	}, Deps{})
	for _, want := range []string{"root:", "programs:", "mode:", `set: "a..b=1"`, `set: "x"`, "token and ca", "bin-dir:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not named: %v", want, err)
		}
	}
	n := newNode(t)
	n.must(os.MkdirAll(filepath.Join(n.opts.Root, "var/lib/nodeagent"), 0o755))
	n.must(os.WriteFile(filepath.Join(n.opts.Root, recordPath), []byte(`{"format": 9}`), 0o644))
	if _, err := n.installer().Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "newer nodeagent") {
		t.Errorf("error %v", err)
	}
	if left := n.left(); len(left) != 1 {
		t.Errorf("written: %q", left)
	}
}
