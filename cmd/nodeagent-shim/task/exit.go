// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

const exitRecord = "nodeagent-exit.json"

// Exit is the recorded end of a container's first process.
type Exit struct {
	PID int `json:"pid"`
	reap.Exit
}

// saveExit keeps the end for whoever cleans up after a shim that died before it could tell. It is worth no error.
func saveExit(bundle string, pid int, e reap.Exit) {
	if raw, err := json.Marshal(Exit{PID: pid, Exit: e}); err == nil {
		_ = os.WriteFile(filepath.Join(bundle, exitRecord), raw, 0o600)
	}
}

// LoadExit returns the end recorded in a bundle.
func LoadExit(bundle string) (Exit, error) {
	raw, err := os.ReadFile(filepath.Join(bundle, exitRecord))
	if err != nil {
		return Exit{}, fmt.Errorf("read exit: %w", err)
	}
	var e Exit
	if err := json.Unmarshal(raw, &e); err != nil {
		return Exit{}, fmt.Errorf("read exit: %w", err)
	}
	return e, nil
}

// oomFile is the cgroup file that counts OOM kills, empty when there is none.
type oomFile string

// findOOM finds it for a process: memory.events on cgroup v2, memory.oom_control on v1.
func findOOM(pid int) oomFile {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	var found oomFile
	for line := range strings.Lines(string(raw)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		switch {
		case controllers == "" && found == "":
			found = oomFile(filepath.Join("/sys/fs/cgroup", path, "memory.events"))
		case strings.Contains(","+controllers+",", ",memory,"):
			return oomFile(filepath.Join("/sys/fs/cgroup/memory", path, "memory.oom_control"))
		}
	}
	return found
}

// killed says whether the kernel killed something of the container for want of memory.
func (f oomFile) killed() bool {
	raw, err := os.ReadFile(string(f))
	if err != nil {
		return false
	}
	for line := range bytes.Lines(raw) {
		if n, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			return string(bytes.TrimSpace(n)) != "0"
		}
	}
	return false
}
