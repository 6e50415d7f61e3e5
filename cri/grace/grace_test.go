// SPDX-License-Identifier: Apache-2.0

package grace

import (
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func keeper(take func() error) *Keeper {
	k := New(slog.New(slog.DiscardHandler))
	k.take = take
	return k
}

func TestHold(t *testing.T) {
	taken := make(chan struct{})
	k := keeper(func() error { taken <- struct{}{}; return nil })
	k.Hold(t.Context(), time.Hour)
	k.Hold(t.Context(), 0) // shortens nothing
	for range 3 {
		<-taken
	}
	go func() {
		for range taken { // what comes until Close is let through
		}
	}()
	k.Close()
	close(taken)
	k.Hold(t.Context(), time.Hour) // takes nothing any more, or it would panic
	k.Close()
}

func TestHoldOnce(t *testing.T) {
	taken := make(chan struct{}, 8)
	k := keeper(func() error { taken <- struct{}{}; return nil })
	for range 2 { // also again, after the first has come to its end
		k.Hold(t.Context(), 0)
		k.running.Wait()
	}
	if n := len(taken); n != 2 {
		t.Errorf("taken %d times, want 2", n)
	}
}

func TestHoldWithoutPermission(t *testing.T) {
	n := 0
	k := keeper(func() error { n++; return errors.New("read-only file system") })
	for range 3 {
		k.Hold(t.Context(), time.Hour)
		k.running.Wait()
	}
	if n != 1 {
		t.Errorf("tried %d times, want 1", n)
	}
}

func TestWithin(t *testing.T) {
	for _, tt := range []struct {
		name, fstype, root, at, options, line, want string
	}{
		{"unified", "cgroup2", "/", "/sys/fs/cgroup", "rw", "0::/system.slice/nodeagent.service", "/sys/fs/cgroup/system.slice/nodeagent.service/cgroup.procs"},
		{"root", "cgroup2", "/", "/sys/fs/cgroup", "rw", "0::/", "/sys/fs/cgroup/cgroup.procs"},
		{"a part of the tree", "cgroup2", "/box", "/sys/fs/cgroup", "rw", "0::/box/agent", "/sys/fs/cgroup/agent/cgroup.procs"},
		{"another part of the tree", "cgroup2", "/box", "/sys/fs/cgroup", "rw", "0::/boxes", ""},
		{"version 1", "cgroup", "/", "/sys/fs/cgroup/cpu,cpuacct", "rw,cpu,cpuacct", "4:cpu,cpuacct:/a", "/sys/fs/cgroup/cpu,cpuacct/a/cgroup.procs"},
		{"named", "cgroup", "/", "/sys/fs/cgroup/systemd", "rw,name=systemd", "1:name=systemd:/a", "/sys/fs/cgroup/systemd/a/cgroup.procs"},
		{"another hierarchy", "cgroup", "/", "/sys/fs/cgroup/cpu", "rw,cpu", "5:cpuset:/a", ""},
		{"version 2 beside 1", "cgroup", "/", "/sys/fs/cgroup/cpu", "rw,cpu", "0::/a", ""},
		{"version 1 beside 2", "cgroup2", "/", "/sys/fs/cgroup/unified", "rw", "5:cpuset:/a", ""},
		{"nonsense", "cgroup2", "/", "/sys/fs/cgroup", "rw", "0:", ""},
	} {
		m := &mountinfo.Info{FSType: tt.fstype, Root: tt.root, Mountpoint: tt.at, VFSOptions: tt.options}
		got, ok := within(m, tt.line)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, ok, tt.want)
		}
	}
}

// TestRootStay takes the lock of this machine and changes nothing.
func TestRootStay(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
			t.Skip("not root, and NODEAGENT_SKIP_ROOT=1")
		}
		t.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var p place
	for range 2 {
		if err := p.stay(); err != nil {
			t.Fatal(err)
		}
	}
	if p.own != string(before) || p.procs == "" {
		t.Errorf("found %q for %q", p.procs, p.own)
	}
	if after, err := os.ReadFile("/proc/self/cgroup"); err != nil || string(after) != string(before) {
		t.Errorf("moved from\n%s to\n%s, %v", before, after, err)
	}
}
