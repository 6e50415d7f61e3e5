// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSysctlsBeside: a second cluster takes over what the first one found, for
// what it finds itself is what the first one's kubelet wrote.
func TestSysctlsBeside(t *testing.T) {
	base := t.TempDir()
	first := map[string]string{}
	for _, name := range sysctls {
		first[name] = "as it was"
	}
	pid := os.Getpid()
	started, err := startTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, s state) {
		t.Helper()
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(statePath(dir), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := func() string {
		t.Helper()
		got, err := sysctlsBefore(filepath.Join(base, "second"))
		if err != nil {
			t.Fatal(err)
		}
		return got[sysctls[0]]
	}
	put("second", state{PID: pid, Started: started, Sysctls: first})
	put("dead", state{PID: pid, Started: started + 1, Sysctls: first})
	if got := before(); got == "as it was" {
		t.Errorf("%q: of itself, or of one that is dead", got)
	}
	put("first", state{PID: pid, Started: started, Sysctls: first})
	if got := before(); got != "as it was" {
		t.Errorf("%q: not what the first one found", got)
	}
}

// TestRootNumbersOfNamespaces: who came later has the number of a namespace by chance.
func TestRootNumbersOfNamespaces(t *testing.T) {
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("needs root")
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "sleep", "1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()         //nolint:errcheck // it is killed
	defer cmd.Process.Kill() //nolint:errcheck // it may be gone
	outside, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns := outside
	for ns == outside {
		if ns, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	started, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	tr := &Traces{namespaces: map[string]string{ns: "box"}, taken: started - 1}
	if err := tr.processesLeft(); err != nil {
		t.Errorf("it came later: %v", err)
	}
	tr.taken = started
	if tr.processesLeft() == nil {
		t.Error("it was there before, and is overlooked")
	}
}
