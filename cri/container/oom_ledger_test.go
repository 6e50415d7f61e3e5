// SPDX-License-Identifier: Apache-2.0

package container

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cri/store"
)

// TestOOMLedger: of two containers of a pod, whose counter knows of kills from
// before them, each gets its own, also when it ends after the other one and systemd
// has taken its cgroup, and however it ends.
func TestOOMLedger(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // a test's
	st := store.New(db)
	if err := st.Load(); err != nil {
		t.Fatal(err)
	}
	l := &oomLedger{root: t.TempDir(), containers: st.Containers, log: slog.New(slog.DiscardHandler)}
	cgroup := func(id string) string { return "/pod.slice/" + id + ".scope" }
	start := func(id string) {
		t.Helper()
		events(t, l.root, cgroup(id), "0")
		c := &store.Container{ID: id, State: store.ContainerRunning, Cgroup: cgroup(id), OOMBefore: l.before(id, cgroup(id))}
		if err := st.Containers.Put(c); err != nil {
			t.Fatal(err)
		}
	}
	kills := func(id, own, pod string) {
		t.Helper()
		events(t, l.root, cgroup(id), own)
		events(t, l.root, "pod.slice", pod)
	}
	end := func(id string, want uint64) {
		t.Helper()
		own, read := oomKills(l.root, cgroup(id))
		if got := l.settle(t.Context(), id, ending{cgroup: cgroup(id), code: 1}, own, read); got != want {
			t.Errorf("container %s: %d kills, want %d", id, got, want)
		}
		if err := os.RemoveAll(filepath.Join(l.root, cgroup(id))); err != nil {
			t.Fatal(err)
		}
		if err := st.Containers.Delete(id); err != nil {
			t.Fatal(err)
		}
	}
	events(t, l.root, "pod.slice", "4")
	start("a")
	start("quiet")
	kills("a", "1", "5")
	start("b")
	kills("b", "2", "7")
	end("b", 2) // by its own counter
	kills("a", "2", "8")
	start("c")
	kills("c", "1", "9")
	for _, id := range []string{"c", "a"} { // systemd is faster
		if err := os.RemoveAll(filepath.Join(l.root, cgroup(id))); err != nil {
			t.Fatal(err)
		}
		end(id, map[string]uint64{"c": 1, "a": 2}[id])
	}
	end("quiet", 0)
}
