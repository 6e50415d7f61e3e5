// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// AppArmorDefault is the profile that RuntimeDefault means. It is loaded when the first container asks for it, and again when
// somebody has unloaded it: aa-remove-unknown, which Debian's package runs, takes whatever has no file in /etc/apparmor.d.
const AppArmorDefault = "cri-containerd.apparmor.d"

const (
	loadedProfiles = "/sys/kernel/security/apparmor/profiles"
	// parserTime bounds apparmor_parser, which takes some hundredths of a second.
	parserTime = 30 * time.Second
)

// useAppArmor sets a loaded profile; the default one is loaded first if it is not.
func (b *builder) useAppArmor(name string) error {
	loaded, err := b.in.System.ReadFile(loadedProfiles)
	if err != nil {
		return fmt.Errorf("list loaded profiles: %w", err)
	}
	if !lists(loaded, name) {
		if name != AppArmorDefault {
			return fmt.Errorf("profile %q is not loaded: %w", name, errdefs.ErrNotFound)
		}
		if err := b.in.System.LoadAppArmor(name); err != nil {
			return fmt.Errorf("load profile %q: %w", name, err)
		}
	}
	b.spec.Process.ApparmorProfile = name
	return nil
}

// RestoreAppArmor loads the default profile again if that is the one named and the kernel does not have it: a command that is run
// in a container cannot enter a profile that somebody has unloaded since. It reports whether it did.
func RestoreAppArmor(s System, name string) (bool, error) {
	if name != AppArmorDefault {
		return false, nil
	}
	loaded, err := s.ReadFile(loadedProfiles)
	if err != nil {
		return false, fmt.Errorf("list loaded profiles: %w", err)
	}
	if lists(loaded, name) {
		return false, nil
	}
	if err := s.LoadAppArmor(name); err != nil {
		return false, fmt.Errorf("load profile %q: %w", name, err)
	}
	return true, nil
}

// lists tells whether the kernel's list of profiles, "name (mode)" a line, has the name.
func lists(loaded []byte, name string) bool {
	for line := range bytes.Lines(loaded) {
		if bytes.HasPrefix(line, []byte(name+" (")) {
			return true
		}
	}
	return false
}

func (machine) LoadAppArmor(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), parserTime) //nolint:forbidigo // Build has none: it computes
	defer cancel()
	cmd := exec.CommandContext(ctx, "/sbin/apparmor_parser", "--replace", "--skip-cache")
	_, err := os.Stat("/etc/apparmor.d/abi/3.0")
	cmd.Stdin = strings.NewReader(defaultAppArmor(name, err == nil))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// defaultAppArmor confines what containers have no business with: mounts, the kernel's switches in /proc and /sys, and processes of
// others. What else a container may do is left to capabilities, seccomp and namespaces. AppArmor's patterns know no "all but",
// so that what is allowed is spelt by what differs at each letter: writing is allowed below /proc/PID, /proc/sys/kernel/shm* and
// /sys/fs/cgroup. Signals come from whoever runs the runtime: unconfined, or the profiles that distributions have for runc and crun.
// The abi, where the node has its file, keeps a newer AppArmor from denying what older ones do not know (user namespaces, io_uring).
func defaultAppArmor(name string, abi bool) string {
	head := ""
	if abi {
		head = "abi <abi/3.0>,\n"
	}
	return head + "profile " + name + ` flags=(attach_disconnected,mediate_deleted) {
  capability,
  file,
  network,
  umount,
  unix,
  signal (receive) peer={unconfined,runc,crun,nodeagent},
  signal (send, receive) peer=` + name + `,
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (trace, tracedby, read, readby) peer=` + name + `,
  deny mount,
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
`
}
