// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// Program is the name of the shim's program.
const Program = "nodeagent-shim"

// installed is where packages put it.
const installed = "/usr/libexec/nodeagent/" + Program

// Find returns the path of the shim's program: beside this one, where packages put it, or in PATH.
func Find() (string, error) {
	candidates := []string{installed}
	if self, err := os.Executable(); err == nil {
		candidates = append([]string{filepath.Join(filepath.Dir(self), Program)}, candidates...)
	}
	for _, path := range candidates {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", fmt.Errorf("find %s beside this program, at %s or in PATH: %w", Program, installed, errdefs.ErrNotFound)
	}
	return filepath.Abs(path)
}
