// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"
)

const (
	manifestWeb = `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.5]}]
ports: [{port: 8080}]
`
	manifestDB    = `{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: 10.96.0.11, ports: [{port: 5432}]}}`
	manifestNodes = `{apiVersion: v1, kind: Node, metadata: {name: me, labels: {topology.kubernetes.io/zone: z1}}, spec: {podCIDRs: [10.1.0.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: me}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: other}, spec: {podCIDRs: [10.1.1.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
`
)

// manifestDir is a directory of manifests of a test.
type manifestDir struct {
	t   *testing.T
	dir string
}

func (d manifestDir) write(name, data string) {
	d.t.Helper()
	tmp := filepath.Join(d.dir, "."+name)
	if err := os.WriteFile(tmp, []byte(data), 0o644); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(d.dir, name)); err != nil {
		d.t.Fatal(err)
	}
}

func (d manifestDir) remove(name string) {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.dir, name)); err != nil {
		d.t.Fatal(err)
	}
}

func (d manifestDir) config() Config {
	cfg := Default()
	cfg.NodeName, cfg.Manifests = "me", d.dir
	return cfg
}

func TestManifestsFollowTheDirectory(t *testing.T) {
	d := manifestDir{t, t.TempDir()}
	d.write("nodes.yaml", manifestNodes)
	d.write("web.yaml", manifestWeb)
	r := newRecord("old/gone")
	w := startWatcher(t, d.config(), r.deps(t))
	if err := w.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, "complete state", func(r *record) bool { return r.serviceNames() == "default/web" })
	if r.node.Name != "me" || r.node.Zone != "z1" || len(r.node.Addrs) != 1 || len(r.cidrs) != 1 {
		t.Errorf("node %+v, cidrs %v", r.node, r.cidrs)
	}
	if len(r.peers) != 1 || r.peers[0].Name != "other" || r.peers[0].PodCIDRs[0].String() != "10.1.1.0/24" {
		t.Errorf("peers %+v", r.peers)
	}
	d.write("db.yaml", manifestDB)
	r.await(t, "new file", func(r *record) bool { return r.serviceNames() == "default/db default/web" })
	d.write("web.yaml", strings.ReplaceAll(manifestWeb, "10.1.0.5", "10.1.0.6"))
	r.await(t, "changed slice", func(r *record) bool {
		o := r.services[nameOf("default/web")]
		return len(o.Slices) == 1 && o.Slices[0].Endpoints[0].Addresses[0] == "10.1.0.6"
	})
	d.remove("web.yaml")
	r.await(t, "removed file", func(r *record) bool { return r.serviceNames() == "default/db" })
	d.write("nodes.yaml", strings.ReplaceAll(manifestNodes, "192.0.2.2", "192.0.2.3"))
	r.await(t, "changed peer", func(r *record) bool { return r.peers[0].Addrs[0].String() == "192.0.2.3" })
}

// A file that was never right keeps leftovers in force; the right ones count
// at once.
func TestManifestsFaultsPruneNothing(t *testing.T) {
	d := manifestDir{t, t.TempDir()}
	d.write("nodes.yaml", manifestNodes)
	d.write("web.yaml", manifestWeb)
	d.write("db.yaml", strings.ReplaceAll(manifestDB, "5432", "99999"))
	r := newRecord("default/db", "old/gone")
	w := startWatcher(t, d.config(), r.deps(t))
	r.await(t, "the right file", func(r *record) bool {
		return r.serviceNames() == "default/db default/web old/gone" && r.node.Name == "me"
	})
	if faults := w.Status().Source.Faults; len(faults) == 0 || !strings.HasPrefix(faults[0], "db.yaml:1: Service default/db: spec.ports[0].port") {
		t.Errorf("faults %q", faults)
	}
	d.write("db.yaml", manifestDB)
	r.await(t, "pruned", func(r *record) bool { return r.serviceNames() == "default/db default/web" })
	// From now on a broken file stays what it was.
	d.write("db.yaml", "kind: [")
	d.write("more.yaml", strings.ReplaceAll(manifestDB, "name: db", "name: more"))
	r.await(t, "the other file", func(r *record) bool { return r.serviceNames() == "default/db default/more default/web" })
	if faults := w.Status().Source.Faults; len(faults) != 1 {
		t.Errorf("faults %q", faults)
	}
}

func TestManifestsTwiceTheSameObject(t *testing.T) {
	d := manifestDir{t, t.TempDir()}
	d.write("a.yaml", manifestDB)
	d.write("b.yaml", strings.ReplaceAll(manifestDB, "10.96.0.11", "10.96.0.12"))
	r := newRecord()
	w := startWatcher(t, d.config(), r.deps(t))
	r.await(t, "the first", func(r *record) bool {
		o := r.services[nameOf("default/db")]
		return o.Service != nil && o.Service.Spec.ClusterIP == "10.96.0.11"
	})
	want := "b.yaml:1: Service default/db is already in a.yaml:1"
	if faults := w.Status().Source.Faults; len(faults) != 1 || faults[0] != want {
		t.Errorf("faults %q, want %q", faults, want)
	}
}

// A directory that is away at first, or goes away, changes nothing.
func TestManifestsDirectoryGoesAway(t *testing.T) {
	d := manifestDir{t, filepath.Join(t.TempDir(), "manifests")}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.write("db.yaml", manifestDB)
	r := newRecord()
	src := newDirSource(d.dir, r.deps(t).Log, newMetrics())
	src.follow(kindServices, func(obj any) { _ = r.call("change", func() {}, objectKey(obj)) })
	if err := src.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer src.stop()
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watcher.Close() }()
	src.load(t.Context(), watcher)
	if n := len(src.objects(kindServices).ListKeys()); n != 1 {
		t.Errorf("%d services after the directory went", n)
	}
	if len(src.status().Faults) != 1 {
		t.Errorf("faults %q", src.status().Faults)
	}
}

func TestRefusedBatchIsOfferedAgain(t *testing.T) {
	d := manifestDir{t, t.TempDir()}
	d.write("db.yaml", manifestDB)
	r := newRecord("old/gone")
	for _, verb := range []string{"update", "prune", "cidrs", "node", "peers", "replace-policies"} {
		r.failNext(verb, errors.New("no"))
	}
	d.write("nodes.yaml", manifestNodes)
	w := startWatcher(t, d.config(), r.deps(t))
	if err := w.Synced(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.await(t, "all of it", func(r *record) bool {
		return r.serviceNames() == "default/db" && r.node.Name == "me" && len(r.peers) == 1 && len(r.cidrs) == 1
	})
	r.failNext("delete", errors.New("no"))
	d.remove("db.yaml")
	r.await(t, "delete", func(r *record) bool { return r.serviceNames() == "" })
}
