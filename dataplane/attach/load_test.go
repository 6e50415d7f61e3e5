// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/bpf"
)

func newBPFFS(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
			t.Skip("needs root")
		}
		t.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
	}
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount bpffs: %v", err)
		}
	})
	return filepath.Join(dir, "na")
}

func mustLoad(t *testing.T, o Options) *Kernel {
	t.Helper()
	k, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// TestRootLoadTwice: a second load finds the maps of the first with what they
// hold; one that is to be larger is, one that is to be smaller stays.
func TestRootLoadTwice(t *testing.T) {
	o := Options{BPFFS: newBPFFS(t), Sizes: map[string]uint32{"ct": 1024, "be": 1024, "eps": 256}, Constants: map[string]any{"cfg_services": true}}
	one := mustLoad(t, o)
	if err := one.Uplinks.Put(uint32(7), make([]byte, one.Uplinks.ValueSize())); err != nil {
		t.Fatal(err)
	}
	ep := bpf.DatapathEndpoint{Ifindex: 9}
	if err := one.Eps.Put(bpf.DatapathAddr{B: [16]uint8{1}}, ep); err != nil {
		t.Fatal(err)
	}
	o.Sizes = map[string]uint32{"ct": 512, "be": 1024, "eps": 512}
	two := mustLoad(t, o)
	if err := two.Settle(); err != nil {
		t.Fatal(err)
	}
	if len(two.Renewed) > 0 || !slices.Equal(two.Converted, []string{"eps"}) {
		t.Errorf("renewed %v, converted %v, want endpoints alone converted", two.Renewed, two.Converted)
	}
	if two.Ct.MaxEntries() != 1024 || two.Eps.MaxEntries() != 512 {
		t.Errorf("conntrack has %d entries, want 1024; endpoints %d, want 512", two.Ct.MaxEntries(), two.Eps.MaxEntries())
	}
	var v []byte
	if err := two.Uplinks.Lookup(uint32(7), &v); err != nil {
		t.Errorf("content is lost: %v", err)
	}
	var got bpf.DatapathEndpoint
	if err := two.Eps.Lookup(bpf.DatapathAddr{B: [16]uint8{1}}, &got); err != nil || got != ep {
		t.Errorf("endpoint %v, %v after the table grew, want %v", got, err, ep)
	}
}

// TestRootLoadOtherLayout: a map that nothing is known of but that it is none
// of ours is made anew, and named.
func TestRootLoadOtherLayout(t *testing.T) {
	o := Options{BPFFS: newBPFFS(t), Sizes: map[string]uint32{"ct": 1024, "be": 1024}}
	pins := filepath.Join(o.BPFFS, "v1", "maps")
	for _, d := range []string{pins, filepath.Join(o.BPFFS, "v1", "links")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	old, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() //nolint:errcheck // the test is over
	if err := old.Pin(filepath.Join(pins, "ct")); err != nil {
		t.Fatal(err)
	}
	if k := mustLoad(t, o); !slices.Equal(k.Renewed, []string{"ct"}) {
		t.Errorf("renewed %v, want the map of flows", k.Renewed)
	}
	if k := mustLoad(t, o); len(k.Renewed) > 0 {
		t.Errorf("renewed %v by the next load", k.Renewed)
	}
}

// TestRootLoadUnknown: a name that the programs do not have is an error, and
// leaves no maps behind.
func TestRootLoadUnknown(t *testing.T) {
	for _, o := range []Options{
		{BPFFS: newBPFFS(t), Sizes: map[string]uint32{"nonsense": 1}},
		{BPFFS: newBPFFS(t), Constants: map[string]any{"cfg_nonsense": true}},
	} {
		if _, err := Load(o); err == nil {
			t.Error("loaded with a name that is not there")
		}
		if left, err := os.ReadDir(filepath.Join(o.BPFFS, "v1", "maps")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}
