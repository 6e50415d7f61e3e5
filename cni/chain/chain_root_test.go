// SPDX-License-Identifier: Apache-2.0

package chain_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/chain"
	"github.com/nodeagent/nodeagent/cni/conflist"
	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// cacheBin returns the directory of the plugins that tests use.
func cacheBin() string {
	dir := os.Getenv("NODEAGENT_CACHE")
	if dir == "" {
		dir = "/var/cache/nodeagent"
	}
	return filepath.Join(dir, "bin")
}

// lab is a node in a namespace of its own; plugins are exec'd from a thread in
// it, so that what they do stays in it.
type lab struct {
	t     *testing.T
	dir   string
	host  string
	own   *cni.Network
	chain *chain.Chain
}

func newLab(t *testing.T) *lab {
	t.Helper()
	netnstest.RequireRoot(t)
	l := &lab{t: t, dir: t.TempDir()}
	l.host = netnstest.New(t)
	db, err := bbolt.Open(filepath.Join(l.dir, "state.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	cfg := cni.Default()
	cfg.QueueDir = filepath.Join(l.dir, "queue")
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd99::/64")}
	l.own, err = cni.New(cfg, cni.Deps{DB: db, HostNS: l.host, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c := chain.Config{
		Enabled: true, ConfDir: filepath.Join(l.dir, "net.d"), BinDirs: []string{cacheBin()},
		CacheDir: filepath.Join(l.dir, "cache"),
	}
	l.chain, err = chain.New(c, chain.Deps{Own: l.own, Call: api.CNICall(l.own, log), DB: db, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.own.Start(t.Context()), l.chain.Start(t.Context()), os.Mkdir(c.ConfDir, 0o700)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.own.Stop(context.Background()), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// conf makes text the only network configuration.
func (l *lab) conf(name, text string) {
	l.t.Helper()
	dir := filepath.Join(l.dir, "net.d")
	old, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// onHost runs f on a thread in the node's namespace.
func (l *lab) onHost(f func() error) error { return netnstest.Try(l.t, l.host, f) }

func (l *lab) attach(id, ns string) (res *cni.Result, err error) {
	l.t.Helper()
	req := cni.Request{
		Key: cni.Key{ContainerID: id, IfName: "eth0"}, NetNS: ns, Pod: cni.Pod{Namespace: "default", Name: id, UID: "u"},
	}
	err = l.onHost(func() (err error) {
		res, err = l.chain.Attach(l.t.Context(), req)
		return err
	})
	return res, err
}

func (l *lab) detach(id string) {
	l.t.Helper()
	err := l.onHost(func() error {
		return l.chain.Detach(l.t.Context(), cni.Key{ContainerID: id, IfName: "eth0"})
	})
	if err != nil {
		l.t.Errorf("detach %s: %v", id, err)
	}
}

// foreign is a network of other people's plugins, with its leases in dir.
func foreign(dir string) string {
	return `{"cniVersion":"1.0.0","name":"foreign","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":"` +
		dir + `","ranges":[[{"subnet":"10.98.0.0/24"}]]}}]}`
}

func leases(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "foreign", "10.*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestRootNoConfigurationIsNotReady(t *testing.T) {
	l := newLab(t)
	if err := l.chain.Status(t.Context()); !errors.Is(err, cni.ErrNotReady) {
		t.Errorf("Status = %v, want ErrNotReady", err)
	}
	if _, err := l.attach("a", netnstest.New(t)); !errors.Is(err, cni.ErrNotReady) {
		t.Errorf("Attach = %v, want ErrNotReady", err)
	}
	l.detach("a")
}

func TestRootOwnNetworkAlone(t *testing.T) {
	l := newLab(t)
	body, err := conflist.Render(conflist.Default(), "/none", "/none")
	if err != nil {
		t.Fatal(err)
	}
	l.conf("05-nodeagent.conflist", string(body))
	if err := l.chain.Status(t.Context()); err != nil {
		t.Error(err)
	}
	res, err := l.attach("a", netnstest.New(t))
	if err != nil || len(res.Addrs) != 2 {
		t.Fatalf("Attach = %+v, %v", res, err)
	}
	if list := l.own.List(); len(list) != 1 || list[0].Network != "" {
		t.Errorf("attachments %+v, want one of the CRI's own", list)
	}
	l.detach("a")
	if got := l.own.Leases(); len(got) != 0 {
		t.Errorf("leases left: %v", got)
	}
}

func TestRootOthersChainedBehindOwn(t *testing.T) {
	l := newLab(t)
	c := conflist.Default()
	c.Chained = []map[string]any{{"type": "portmap", "snat": true, "capabilities": map[string]bool{"portMappings": true}}}
	body, err := conflist.Render(c, "/none", "/none")
	if err != nil {
		t.Fatal(err)
	}
	l.conf("05-nodeagent.conflist", string(body))
	ns := netnstest.New(t)
	res, err := l.attach("a", ns)
	if err != nil || len(res.Addrs) != 2 || res.HostIfName == "" {
		t.Fatalf("Attach = %+v, %v", res, err)
	}
	if _, err := l.attach("a", ns); err != nil {
		t.Errorf("a repeat: %v", err)
	}
	if err := l.onHost(func() error {
		return l.chain.Check(t.Context(), cni.Request{Key: res.Key, NetNS: ns})
	}); err != nil {
		t.Errorf("Check = %v", err)
	}
	l.detach("a")
	l.detach("a")
	if got := l.own.Leases(); len(got) != 0 {
		t.Errorf("leases left: %v", got)
	}
}

func TestRootChainThatBreaksIsRemembered(t *testing.T) {
	l := newLab(t)
	c := conflist.Default()
	c.Chained = []map[string]any{{"type": "no-such-plugin"}}
	body, err := conflist.Render(c, "/none", "/none")
	if err != nil {
		t.Fatal(err)
	}
	l.conf("05-nodeagent.conflist", string(body))
	if _, err := l.attach("a", netnstest.New(t)); err == nil || !strings.Contains(err.Error(), "no-such-plugin") {
		t.Errorf("Attach = %v, want the plugin's name", err)
	}
	l.conf("05-nodeagent.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"ptp"}]}`)
	err = l.onHost(func() error { return l.chain.Collect(t.Context(), nil) })
	if err == nil {
		t.Error("Collect succeeded with a plugin that does not exist")
	}
}

func TestRootForeignNetwork(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(l.dir, "leases")
	l.conf("10-broken.conflist", "{")
	if err := os.WriteFile(filepath.Join(l.dir, "net.d", "20-foreign.conflist"), []byte(foreign(dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	ns := netnstest.New(t)
	res, err := l.attach("a", ns)
	if err != nil {
		t.Fatal(err)
	}
	if want := netip.MustParsePrefix("10.98.0.0/24"); !want.Contains(res.Addrs[0].Addr()) || leases(t, dir) != 1 {
		t.Errorf("address %s, %d leases", res.Addrs[0], leases(t, dir))
	}
	for _, id := range []string{"b", "c"} {
		if _, err := l.attach(id, netnstest.New(t)); err != nil {
			t.Fatal(err)
		}
	}
	l.detach("c")
	// The configuration changes and a namespace goes: what was attached with
	// the old one is detached with the old one.
	l.conf("05.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"no-such-plugin"}]}`)
	if err := netns.Remove(ns); err != nil {
		t.Fatal(err)
	}
	l.detach("a")
	if n := leases(t, dir); n != 1 {
		t.Errorf("%d leases after the first detach, want 1", n)
	}
	if err := l.onHost(func() error { return l.chain.Collect(t.Context(), nil) }); err != nil {
		t.Errorf("Collect = %v", err)
	}
	if n := leases(t, dir); n != 0 {
		t.Errorf("%d leases after the collection, want none", n)
	}
}
