// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// instance is the claim of one daemon on one run directory; the kernel drops
// it with the process, however that ends.
type instance struct{ lock *os.File }

// claimInstance refuses a second daemon on the same run directory.
func claimInstance(runDir string) (*instance, error) {
	if err := makePassable(runDir); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	path := filepath.Join(runDir, "nodeagent.pid")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, readErr := os.ReadFile(path)
		err = errors.Join(err, readErr, f.Close())
		if pid := strings.TrimSpace(string(holder)); pid != "" {
			return nil, fmt.Errorf("another nodeagent, process %s, runs on %s: %w", pid, runDir, err)
		}
		return nil, fmt.Errorf("another nodeagent runs on %s: %w", runDir, err)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock: %w", err), f.Close())
	}
	return &instance{lock: f}, nil
}

// makePassable makes a directory, or mends one, that everybody may pass
// through: the root of a user namespace goes that way to what is mounted into
// its container, and is nobody on the node.
func makePassable(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if m := st.Mode().Perm(); m&0o011 != 0o011 {
		return os.Chmod(dir, m|0o011)
	}
	return nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// release gives the run directory up.
func (i *instance) release() error { return i.lock.Close() }
