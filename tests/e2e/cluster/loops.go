// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// detachLoops frees the loop devices whose files are in dir, and before them those that
// stand on them: images in a pool that is itself in one, and the kubelet's holds on those.
func detachLoops(dir string) error {
	var stack []string
	for dev := range loopsIn(dir) {
		stack = append(stack, dev)
	}
	for i := 0; i < len(stack); i++ {
		stack = append(stack, slices.DeleteFunc(loopsOn(stack[i]), func(dev string) bool { return slices.Contains(stack, dev) })...)
	}
	var errs []error
	for _, dev := range slices.Backward(stack) {
		f, err := os.Open("/dev/" + dev)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// One that frees itself with its last user may be gone by now.
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, fmt.Errorf("detach %s: %w", dev, err))
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// loopsOn are the loop devices whose file is on a device, or is that device.
func loopsOn(dev string) []string {
	var st unix.Stat_t
	if unix.Stat("/dev/"+dev, &st) != nil {
		return nil
	}
	var out []string
	dirs, _ := filepath.Glob("/sys/block/loop*/loop")
	for _, d := range dirs {
		name := filepath.Base(filepath.Dir(d))
		f, err := os.Open("/dev/" + name)
		if err != nil {
			continue // detached meanwhile
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if err == nil && (info.Device == st.Rdev || info.Rdevice == st.Rdev) {
			out = append(out, name)
		}
		_ = f.Close()
	}
	return out
}

// loopsIn maps loop devices to backing files below dir.
func loopsIn(dir string) map[string]string {
	out := map[string]string{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		if backing := string(bytes.TrimSpace(data)); strings.HasPrefix(backing, dir+"/") {
			out[strings.Split(f, "/")[3]] = backing
		}
	}
	return out
}
