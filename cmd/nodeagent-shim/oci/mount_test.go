// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("not root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
}

func TestShorten(t *testing.T) {
	for _, tt := range []struct{ in, parent, out string }{
		{"lowerdir=/a/b/1/fs:/a/b/2/fs", "/a/b", "lowerdir=1/fs:2/fs"},
		{"lowerdir=/a/b/1/fs", "/a/b/1", "lowerdir=fs"},
		{"lowerdir=/a/1:/b/2", "/", "lowerdir=a/1:b/2"},
		{"upperdir=/u", "/", "upperdir=/u"},
	} {
		parent, out := shorten([]string{"x", tt.in})
		if parent != tt.parent || out[1] != tt.out || out[0] != "x" {
			t.Errorf("%s: got %s, %v", tt.in, parent, out)
		}
	}
}

// layers makes directories like a snapshotter's, each with a file of its own; their names together exceed what mount(2) takes.
func layers(t *testing.T, n int) (dir string, m Mount) {
	t.Helper()
	dir = t.TempDir()
	var lower []string
	for i := range n {
		d := filepath.Join(dir, "snapshots", strings.Repeat("long", 10)+fmt.Sprint(i), "fs")
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, d)
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, Mount{Type: "overlay", Source: "overlay", Options: []string{
		"index=off", "workdir=" + filepath.Join(dir, "work"), "upperdir=" + filepath.Join(dir, "upper"), "lowerdir=" + strings.Join(lower, ":"),
	}}
}

func TestRootManyLayers(t *testing.T) {
	needRoot(t)
	for _, n := range []int{2, 60} {
		dir, m := layers(t, n)
		root := filepath.Join(dir, "root")
		if err := MountAll([]Mount{m}, root, ""); err != nil {
			t.Fatalf("%d layers: %v", n, err)
		}
		entries, err := os.ReadDir(root)
		if err != nil || len(entries) != n {
			t.Errorf("%d layers: %d files, %v", n, len(entries), err)
		}
		for range 2 { // the second time nothing is left to do
			if err := UnmountAll(root); err != nil {
				t.Error(err)
			}
		}
	}
	if wd, err := os.Getwd(); err != nil || !strings.HasSuffix(wd, "/oci") {
		t.Errorf("the working directory is now %s, %v", wd, err)
	}
}

// TestRootMappedLayers mounts the same layers for a user namespace.
func TestRootMappedLayers(t *testing.T) {
	needRoot(t)
	userns := holdUserns(t)
	for _, n := range []int{2, 60} {
		dir, m := layers(t, n)
		m.Options = append(m.Options, "uidmap=0:1000000:65536", "gidmap=0:1000000:65536")
		root := filepath.Join(dir, "root")
		if err := MountAll([]Mount{m}, root, userns); err != nil {
			t.Fatalf("%d layers: %v", n, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(root, "f1"), &st); err != nil || st.Uid != 1000000 {
			t.Errorf("%d layers: owner %d, %v", n, st.Uid, err)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if c := strings.Count(string(mounts), " "+dir); c != 1 {
			t.Errorf("%d layers: %d mounts in the table, want the root alone", n, c)
		}
		if i := strings.Index(string(mounts), " "+root+" "); i < 0 || strings.Contains(strings.SplitN(string(mounts)[i:], "\n", 2)[0], "/proc") {
			t.Errorf("%d layers: the root's mount is not there or speaks of /proc", n)
		}
		if err := UnmountAll(root); err != nil {
			t.Error(err)
		}
	}
	_, m := layers(t, 2)
	m.Options = append(m.Options, "uidmap=0:1000000:65536")
	if err := MountAll([]Mount{m}, t.TempDir(), ""); err == nil {
		t.Error("mapped layers without a user namespace")
	}
}

// holdUserns starts a process in a user namespace; it lives as long as the test.
func holdUserns(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("cat")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid)
}

func TestRootBindReadOnly(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	m := Mount{Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "ro", "nosuid"}}
	if err := MountAll([]Mount{m}, root, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); err == nil {
		t.Error("a read-only bind mount took a file")
	}
	if err := UnmountAll(root); err != nil {
		t.Error(err)
	}
	if err := MountAll([]Mount{{Type: "nosuchfs", Source: "x"}}, root, ""); err == nil {
		t.Error("an unknown file system was mounted")
	}
}

// TestRootRemoveRoot: containerd looks for mounts in a root that is there, in the whole table of mounts.
func TestRootRemoveRoot(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "root")
	layer := t.TempDir()
	if err := os.WriteFile(filepath.Join(layer, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := Mount{Type: "bind", Source: layer, Options: []string{"rbind"}}
	if err := MountAll([]Mount{m, m}, root, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveRoot(root); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(root); !os.IsNotExist(err) {
			t.Errorf("the root's directory is still there: %v", err)
		}
	}
	if err := RemoveRoot(layer); err != nil {
		t.Errorf("a root that is no mount: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(layer, "x")); err != nil {
		t.Errorf("its file: %v", err)
	}
}

// TestPlain decides when this process may act in runc's place.
func TestPlain(t *testing.T) {
	root := t.TempDir()
	for name, tt := range map[string]struct {
		rt    Runtime
		state string
		want  bool
	}{
		"runc":          {Runtime{Binary: "/bin/runc"}, `{"cgroup_paths":{"a":"/x"}}`, true},
		"empty hooks":   {Runtime{Binary: "/bin/runc"}, `{"cgroup_paths":{"a":"/x"},"config":{"Hooks":{"poststop":null,"poststart":[]}}}`, true},
		"other hooks":   {Runtime{Binary: "/bin/runc"}, `{"cgroup_paths":{"a":"/x"},"config":{"Hooks":{"poststart":[{}]}}}`, true},
		"a hook":        {Runtime{Binary: "/bin/runc"}, `{"cgroup_paths":{"a":"/x"},"config":{"Hooks":{"poststop":[{"path":"/h"}]}}}`, false},
		"RDT":           {Runtime{Binary: "/bin/runc"}, `{"cgroup_paths":{"a":"/x"},"intel_rdt_path":"/r"}`, false},
		"systemd":       {Runtime{Binary: "/bin/runc", Systemd: true}, `{"cgroup_paths":{"a":"/x"}}`, false},
		"crun":          {Runtime{Binary: "/bin/crun"}, `{"cgroup_paths":{"a":"/x"}}`, false},
		"other state":   {Runtime{Binary: "/bin/runc"}, `{}`, false},
		"no JSON":       {Runtime{Binary: "/bin/runc"}, `x`, false},
		"without state": {Runtime{Binary: "/bin/runc"}, "", false},
	} {
		tt.rt.Root = filepath.Join(root, strings.ReplaceAll(name, " ", "-"))
		if err := os.MkdirAll(filepath.Join(tt.rt.Root, "id"), 0o755); err != nil {
			t.Fatal(err)
		}
		if tt.state != "" {
			if err := os.WriteFile(filepath.Join(tt.rt.Root, "id/state.json"), []byte(tt.state), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, got := tt.rt.plain("id", "poststop"); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	s := &state{CgroupPaths: map[string]string{"memory": "/sys/fs/cgroup/memory"}}
	if err := s.removeCgroups("id"); err == nil {
		t.Error("would remove a cgroup that others live in")
	}
}
