// SPDX-License-Identifier: Apache-2.0

package container

import (
	"os"
	"path/filepath"
	"testing"
)

func events(t *testing.T, root, cgroup, kills string) {
	t.Helper()
	dir := filepath.Join(root, cgroup)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte("low 0\noom 7\noom_kill "+kills+"\noom_group_kill 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOOMKills(t *testing.T) {
	root := t.TempDir()
	events(t, root, "pod.slice", "5")
	events(t, root, "pod.slice/a.scope", "2")
	if n, ok := oomKills(root, "/pod.slice/a.scope"); n != 2 || !ok {
		t.Errorf("a scope that is there: %d, %v", n, ok)
	}
	for _, gone := range []string{"/pod.slice/b.scope", ""} {
		if n, ok := oomKills(root, gone); n != 0 || ok {
			t.Errorf("%q: %d, %v", gone, n, ok)
		}
	}
}

// TestOOMLost is the end of a container whose scope systemd has removed.
func TestOOMLost(t *testing.T) {
	root := t.TempDir()
	events(t, root, "pod.slice", "5")
	for name, tt := range map[string]struct {
		ending
		want uint64
	}{
		"killed":                {ending{cgroup: "/pod.slice/a.scope", before: 3, code: 137}, 2},
		"killed, none counted":  {ending{cgroup: "/pod.slice/a.scope", before: 5, code: 137}, 0},
		"ended of itself":       {ending{cgroup: "/pod.slice/a.scope", before: 3, code: 1}, 0},
		"killed by a stop":      {ending{cgroup: "/pod.slice/a.scope", before: 3, code: 137, stopped: true}, 0},
		"its pod is gone, too":  {ending{cgroup: "/other.slice/a.scope", before: 3, code: 137}, 0},
		"its cgroup is unknown": {ending{before: 0, code: 137}, 0},
	} {
		if got := tt.oomLost(root); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
