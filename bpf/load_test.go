// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

var update = flag.Bool("update", false, "write golden files")

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("needs root")
	}
	tb.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
}

// booleans are the features that are decided at load time.
var booleans = []string{DatapathVarCfgServices, DatapathVarCfgSvcStats, DatapathVarCfgSvcReset, DatapathVarCfgRecall, DatapathVarCfgDsr, DatapathVarCfgTunDirect}

// load loads all programs, with small maps and the booleans of the mask set.
func load(tb testing.TB, mask uint) *DatapathObjects {
	tb.Helper()
	needRoot(tb)
	if err := rlimit.RemoveMemlock(); err != nil {
		tb.Fatal(err)
	}
	spec, err := LoadDatapath()
	if err != nil {
		tb.Fatal(err)
	}
	for i, name := range booleans {
		if err := spec.Variables[name].Set(mask&(1<<i) != 0); err != nil {
			tb.Fatal(err)
		}
	}
	for _, m := range spec.Maps {
		if m.Type == ebpf.LRUHash || m.Type == ebpf.Array && m.MaxEntries > 1024 {
			m.MaxEntries = 1024
		}
	}
	var objs DatapathObjects
	if err := spec.LoadAndAssign(&objs, nil); err != nil {
		if refused, ok := errors.AsType[*ebpf.VerifierError](err); ok {
			tb.Logf("%+v", refused)
		}
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := objs.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &objs
}

// golden is the file of what the verifier of the running kernel walks: each
// version of it counts in its own way.
func golden(t *testing.T) string {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	n := strings.SplitN(string(release), ".", 3)
	return "testdata/verified-" + strings.Join(n[:2], ".") + ".txt"
}

// masks are the combinations of booleans to load: all there are or, on an
// emulated machine, none, all, each one alone and all but each one. The last one
// has nothing to do with the others, and takes turns.
func masks() []uint {
	n := len(booleans) - 1
	var out []uint
	for mask := range uint(1) << n {
		on := bits.OnesCount(mask)
		if !testing.Short() || on <= 1 || on >= n-1 {
			out = append(out, mask|uint(on&1)<<n)
		}
	}
	return out
}

// TestRootLoad loads every program under every combination of its booleans,
// and compares how many instructions the verifier walks with what was accepted,
// where the kernel is one that this is recorded for.
func TestRootLoad(t *testing.T) {
	var lines []string
	for _, mask := range masks() {
		objs := load(t, mask)
		var on []string
		for i, name := range booleans {
			if mask&(1<<i) != 0 {
				on = append(on, strings.TrimPrefix(name, "cfg_"))
			}
		}
		for name, prog := range map[string]*ebpf.Program{
			"from_pod": objs.FromPod, "to_pod": objs.ToPod, "from_net": objs.FromNet,
			"sock_connect4": objs.SockConnect4, "sock_connect6": objs.SockConnect6,
			"sock_sendmsg4": objs.SockSendmsg4, "sock_recvmsg4": objs.SockRecvmsg4,
		} {
			info, err := prog.Info()
			if err != nil {
				t.Fatal(err)
			}
			n, _ := info.VerifiedInstructions()
			lines = append(lines, fmt.Sprintf("%-14s %-28s %d", name, strings.Join(on, "+"), n))
		}
	}
	slices.Sort(lines)
	got := strings.Join(lines, "\n") + "\n"
	file := golden(t)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		t.Logf("nothing to compare with: no %s", file)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	accepted := strings.Split(string(want), "\n")
	if slices.ContainsFunc(lines, func(l string) bool { return !slices.Contains(accepted, l) }) {
		t.Errorf("verified instructions changed (run with -update when that is meant):\n%s", got)
	}
}
