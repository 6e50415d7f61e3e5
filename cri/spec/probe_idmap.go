// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// ProbeUserNamespaces says why pods cannot have user namespaces of their own on
// this machine; nil when they can. Their files, and the volumes that the
// kubelet makes for nearly every pod, are on tmpfs, whose owners the kernel has to
// map. Linux learned that in 6.3, and a version says little where features are
// ported back or switched off, so a tmpfs that nobody sees is mapped.
func ProbeUserNamespaces() error {
	user, err := mount.GetUsernsFD("0:65536:1", "0:65536:1")
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer user.Close() //nolint:errcheck // a namespace
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs) //nolint:errcheck // nothing is written
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("make a tmpfs: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount a tmpfs: %w", err)
	}
	defer unix.Close(tree) //nolint:errcheck // attached nowhere
	err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd()),
	})
	if errors.Is(err, unix.EINVAL) {
		return errors.New("the kernel cannot map the owners of files on tmpfs to them, which takes Linux 6.3 or newer")
	}
	if err != nil {
		return fmt.Errorf("map the owners of a tmpfs: %w", err)
	}
	return nil
}
