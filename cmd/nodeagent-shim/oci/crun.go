// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// crun says whether the OCI runtime is crun, whose way of starting is known.
func (r *Runtime) crun() bool { return filepath.Base(r.Binary) == "crun" }

// releaseCrun does what crun start does, in every release since 0.9 (src/libcrun/status.c): it writes a byte to the FIFO that the
// container's process has open for reading. crun itself copies its program first and reads its state and the bundle again, 4 ms in all.
func releaseCrun(fifo string) error {
	fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENXIO):
		return errors.New("OCI runtime start failed: container process is already dead")
	case err != nil:
		return fmt.Errorf("open %s: %w", fifo, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Its absence is how crun tells a running container from a created one.
	if err := os.Remove(fifo); err != nil {
		return fmt.Errorf("remove %s: %w", fifo, err)
	}
	if _, err := unix.Write(fd, []byte{0}); err != nil {
		return fmt.Errorf("write %s: %w", fifo, err)
	}
	return nil
}
