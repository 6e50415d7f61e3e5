// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// environment is the process's, as runc makes it: the last of several variables of one name, and a HOME. home is asked for only
// when there is none.
func environment(env []string, home func() string) ([]string, error) {
	out := make([]string, 0, len(env)+1)
	saw := map[string]bool{}
	homeIsSet := false
	for _, kv := range slices.Backward(env) {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" {
			return nil, unable("environment variable without a name or a value")
		}
		if saw[key] {
			continue
		}
		saw[key] = true
		if key == "HOME" {
			if value == "" {
				continue
			}
			homeIsSet = true
		}
		out = append(out, kv)
	}
	slices.Reverse(out)
	if !homeIsSet {
		out = append(out, "HOME="+home())
	}
	return out, nil
}

// maxPasswd bounds what is read of a container's /etc/passwd.
const maxPasswd = 1 << 20

// homeOf is a user's home in the container's /etc/passwd, "/" when it has none. root is the container's root directory.
func homeOf(root *os.File, uid uint32) string {
	const none = "/"
	// Links lead to where they lead in the container, and a FIFO in the file's place is not waited for.
	fd, err := unix.Openat2(int(root.Fd()), "etc/passwd", &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return none
	}
	f := os.NewFile(uintptr(fd), "passwd")
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return none
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxPasswd))
	if err != nil {
		return none
	}
	for line := range strings.Lines(string(raw)) {
		// name:password:uid:gid:comment:home:shell
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) > 5 && fields[2] == strconv.FormatUint(uint64(uid), 10) {
			return fields[5]
		}
	}
	return none
}

// groupsDenied says whether the process's user namespace lets no groups be set.
func groupsDenied(pid int) (bool, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/setgroups", pid))
	if err != nil {
		return false, unable("%w", err)
	}
	return strings.TrimSpace(string(raw)) == "deny", nil
}
