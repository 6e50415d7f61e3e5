// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// FormatOptions say how MakeFS lays out a file system.
type FormatOptions struct {
	Type  string // ext4, xfs, btrfs
	Label string
	// Args are further arguments for mkfs, from the volume's class.
	Args []string
}

// MinSize is the smallest device, in bytes, that mkfs of this type accepts; 0
// for a type that MakeFS does not know.
func MinSize(fsType string) int64 {
	switch fsType {
	case "ext4", "ext3", "ext2":
		return 4 << 20
	case "xfs":
		return 300 << 20 // mkfs.xfs refuses smaller ones since xfsprogs 5.19
	case "btrfs":
		return 112 << 20
	default:
		return 0
	}
}

// MakeFS makes a file system on device. It never discards: a discard would give
// the reserved blocks of the image back. It is the caller's to know that the
// device holds nothing.
func MakeFS(ctx context.Context, device string, o FormatOptions) error {
	var argv []string
	switch o.Type {
	case "ext4", "ext3", "ext2":
		argv = []string{"mkfs." + o.Type, "-q", "-F", "-m", "0", "-b", "4096", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"}
	case "xfs":
		argv = []string{"mkfs.xfs", "-q", "-f", "-K"}
	case "btrfs":
		argv = []string{"mkfs.btrfs", "-q", "-f", "-K"}
	default:
		return fmt.Errorf("format %s as %q: %w", device, o.Type, ErrNotSupported)
	}
	if o.Label != "" {
		argv = append(argv, "-L", o.Label)
	}
	argv = append(append(argv, o.Args...), device)
	if _, err := run(ctx, argv...); err != nil {
		return fmt.Errorf("format %s as %s: %w", device, o.Type, err)
	}
	return nil
}

// CheckFS repairs what is safe to repair before a read-write mount. XFS and
// btrfs replay their logs at mount and need none. ErrCorrupt when a person has
// to look.
func CheckFS(ctx context.Context, device, fsType string) error {
	if !strings.HasPrefix(fsType, "ext") {
		return nil
	}
	out, err := run(ctx, "e2fsck", "-p", device)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		switch code := exit.ExitCode(); {
		case code >= 0 && code&^3 == 0: // 1: repaired, 2: repaired, reboot if it was mounted
			return nil
		case code&4 != 0:
			return fmt.Errorf("check %s: %w: %s", device, ErrCorrupt, out)
		}
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", device, err)
	}
	return nil
}

// ResizeOffline grows an unmounted ext file system to its device.
func ResizeOffline(ctx context.Context, device, fsType string) error {
	if !strings.HasPrefix(fsType, "ext") {
		return nil
	}
	_, err := run(ctx, "e2fsck", "-f", "-p", device)
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode()&^3 != 0) {
		return fmt.Errorf("check %s before resize: %w", device, err)
	}
	if _, err := run(ctx, "resize2fs", device); err != nil {
		return fmt.Errorf("resize %s: %w", device, err)
	}
	return nil
}

// NewIdentity gives the unmounted file system on device a UUID of its own, so
// that a clone and its source can be mounted at once. Only XFS and btrfs care;
// a log that needs replay makes xfs_admin refuse, and nouuid covers that case.
func NewIdentity(ctx context.Context, device, fsType string) error {
	if fsType != "btrfs" {
		return nil
	}
	if _, err := run(ctx, "btrfstune", "-f", "-u", device); err != nil {
		return fmt.Errorf("new identity for %s: %w", device, err)
	}
	return nil
}

// Have says whether a program that the type needs is installed.
func Have(program string) bool {
	_, err := lookPath(program)
	return err == nil
}

// lookPath finds administrative programs also when PATH is a service's short one.
func lookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if st, err := os.Stat(dir + name); err == nil && st.Mode()&0o111 != 0 {
			return dir + name, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: %w", name, ErrNotSupported)
}

// run executes a program and returns the tail of what it printed.
func run(ctx context.Context, argv ...string) (string, error) {
	path, err := lookPath(argv[0])
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	text := strings.TrimSpace(out.String())
	if len(text) > 600 {
		text = "…" + text[len(text)-600:]
	}
	text = strings.Join(strings.Fields(text), " ")
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", argv[0], err, text)
	}
	return text, nil
}
