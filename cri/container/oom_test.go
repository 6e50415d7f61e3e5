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
	events(t, root, "pod.slice/b.scope", "2")
	const a, b, gone = "/pod.slice/a.scope", "/pod.slice/b.scope", "/pod.slice/gone.scope"
	for name, tt := range map[string]struct {
		ending
		want uint64
	}{
		"killed":                     {ending{cgroup: a, before: 3, code: 137}, 2},
		"killed, none counted":       {ending{cgroup: a, before: 5, code: 137}, 0},
		"its child was killed":       {ending{cgroup: a, before: 3, code: 1}, 2},
		"another one explains all":   {ending{cgroup: a, beside: []string{b}, before: 3, code: 1}, 0},
		"another one explains some":  {ending{cgroup: a, beside: []string{b}, before: 1, code: 1}, 2},
		"another one is gone, too":   {ending{cgroup: a, beside: []string{gone}, before: 3, code: 1}, 0},
		"the same, and it is killed": {ending{cgroup: a, beside: []string{gone}, before: 3, code: 137}, 2},
		"the same, but by a stop":    {ending{cgroup: a, beside: []string{gone}, before: 3, code: 137, stopped: true}, 0},
		"its pod is gone, too":       {ending{cgroup: "/other.slice/a.scope", before: 3, code: 137}, 0},
		"its cgroup is unknown":      {ending{before: 0, code: 137}, 0},
	} {
		if got := tt.oomLost(root); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
