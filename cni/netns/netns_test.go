// SPDX-License-Identifier: Apache-2.0

package netns_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func TestOpenRefusesWhatIsNoNetNS(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path string
		want       error
	}{
		{"missing", filepath.Join(dir, "none"), os.ErrNotExist},
		{"empty", "", os.ErrNotExist},
		{"file", file, netns.ErrNotNetNS},
		{"fifo", fifo, netns.ErrNotNetNS},
		{"directory", dir, netns.ErrNotNetNS},
		{"pid namespace", "/proc/self/ns/pid", netns.ErrNotNetNS},
		{"below a file", filepath.Join(file, "x"), unix.ENOTDIR},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ns, err := netns.Open(tc.path)
			if !errors.Is(err, tc.want) {
				t.Fatalf("Open(%q) = %v, %v, want %v", tc.path, ns, err, tc.want)
			}
		})
	}
}

func TestRootCreateDoRemove(t *testing.T) {
	netnstest.RequireRoot(t)
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close() //nolint:errcheck // a test's read-only descriptor
	path := filepath.Join(t.TempDir(), "a", "net")
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	if err := netns.Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Create = %v, want os.ErrExist", err)
	}
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatalf("a failed Create must not touch what is there: %v", err)
	}
	if ns.Inode() == home.Inode() {
		t.Error("the new namespace is the old one")
	}
	var names []string
	boom := errors.New("boom")
	err = ns.Do(func() error {
		ifs, err := net.Interfaces()
		for _, i := range ifs {
			names = append(names, i.Name)
		}
		return errors.Join(err, boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("Do = %v, want the function's error", err)
	}
	if len(names) != 1 || names[0] != "lo" {
		t.Errorf("interfaces inside = %v, want lo alone", names)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := netns.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file left behind: %v", err)
	}
}

func TestRootRemoveOfPlainFile(t *testing.T) {
	netnstest.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := netns.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestRootNoThreadStrays runs Do on many goroutines and then looks at every
// thread of the process: all must be at home.
func TestRootNoThreadStrays(t *testing.T) {
	netnstest.RequireRoot(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for range 50 {
		go func() { done <- ns.Do(func() error { runtime.Gosched(); return nil }) }()
	}
	for range 50 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		// A thread may end while we look; one that is there must be at home.
		if got, err := os.Readlink(task); err == nil && got != want {
			t.Errorf("%s is in %s, home is %s", task, got, want)
		}
	}
}
