// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"path/filepath"
	"strings"
)

// sysctls are what a kubelet writes and the kernel has one of only. Of clusters
// that run side by side the first one finds how they were, and the last one to
// go puts them back.
var sysctls = []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// siblings are the clusters that live beside the one in dir.
func siblings(dir string) []*state {
	var out []*state
	states, _ := filepath.Glob(statePath(filepath.Join(filepath.Dir(dir), "*")))
	for _, path := range states {
		if filepath.Dir(path) == dir {
			continue
		}
		if s, err := readState(filepath.Dir(path)); err == nil && s.alive() {
			out = append(out, s)
		}
	}
	return out
}

// sysctlsBefore is how they were before the first of the clusters.
func sysctlsBefore(dir string) (map[string]string, error) {
	for _, s := range siblings(dir) {
		if len(s.Sysctls) == len(sysctls) {
			return s.Sysctls, nil
		}
	}
	out := map[string]string{}
	for _, s := range sysctls {
		data, err := os.ReadFile(filepath.Join("/proc/sys", s))
		if err != nil {
			return nil, err
		}
		out[s] = strings.TrimSpace(string(data))
	}
	return out, nil
}

func restoreSysctl(name, want string) error {
	path := filepath.Join("/proc/sys", name)
	now, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(now)) == want {
		return err
	}
	return os.WriteFile(path, []byte(want), 0)
}
