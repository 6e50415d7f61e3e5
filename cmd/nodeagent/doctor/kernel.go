// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// OldestKernel is the oldest kernel that nodeagent promises to run on.
const OldestKernel = "6.1"

func (o Options) path(p string) string { return filepath.Join(o.Root, p) }

func (o Options) kernel(context.Context) []Finding {
	data, err := os.ReadFile(o.path("/proc/sys/kernel/osrelease"))
	if err != nil {
		return one("kernel", Fail, err.Error(), "mount /proc")
	}
	release := strings.TrimSpace(string(data))
	if older(release, OldestKernel) {
		return one("kernel", Fail, release, "Linux "+OldestKernel+" or newer is needed")
	}
	return one("kernel", OK, release, "")
}

// older compares the first two numbers of kernel releases.
func older(release, than string) bool {
	a, b := majorMinor(release), majorMinor(than)
	return a[0] < b[0] || a[0] == b[0] && a[1] < b[1]
}

func majorMinor(release string) [2]int {
	var out [2]int
	for i, s := range strings.SplitN(release, ".", 3) {
		if i > 1 {
			break
		}
		digits := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if digits >= 0 {
			s = s[:digits]
		}
		out[i], _ = strconv.Atoi(s)
	}
	return out
}

func (o Options) btf(context.Context) []Finding {
	if _, err := os.Stat(o.path("/sys/kernel/btf/vmlinux")); err != nil {
		return one("btf", Warn, "no /sys/kernel/btf/vmlinux", "drop reasons of the kernel are not counted; use a kernel with CONFIG_DEBUG_INFO_BTF")
	}
	return one("btf", OK, "present", "")
}

// needs lists the capabilities by number (capabilities(7)), and what is lost
// without each.
type need struct {
	bit   uint
	name  string
	level Level
	hint  string
}

func needs() []need {
	return []need{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", Fail, "namespaces and mounts cannot be made; run as root"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", Fail, "links and routes cannot be made; run as root"},
		{unix.CAP_BPF, "CAP_BPF", Fail, "the data path cannot be loaded; run as root"},
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", Warn, "namespaces of other users' processes cannot be entered"},
		{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", Warn, "oom_score_adj can only be raised (it is clamped), and ext4 volumes grow offline instead of online"},
		{unix.CAP_CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE", Warn, "containers cannot be checkpointed"},
	}
}

func (o Options) capabilities(context.Context) []Finding {
	eff, err := o.effective()
	if err != nil {
		return one("capabilities", Fail, err.Error(), "mount /proc")
	}
	var out []Finding
	for _, n := range needs() {
		if eff&(1<<n.bit) == 0 {
			out = append(out, Finding{Check: "capabilities", Level: n.level, Detail: n.name + " is missing", Hint: n.hint})
		}
	}
	if len(out) == 0 {
		return one("capabilities", OK, fmt.Sprintf("all %d", len(needs())), "")
	}
	return out
}

func (o Options) effective() (uint64, error) {
	f, err := os.Open(o.path("/proc/self/status"))
	if err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if hex, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, fmt.Errorf("read capabilities: no CapEff in %s", f.Name())
}

// wantFiles is the number of descriptors that 110 busy pods need at most.
const wantFiles = 16384

// userNamespaces tries what the daemon tries at its start.
func (o Options) userNamespaces(context.Context) []Finding {
	const check = "user namespaces"
	if err := spec.ProbeUserNamespaces(); err != nil {
		return one(check, Warn, err.Error(), "pods with hostUsers: false are refused")
	}
	return one(check, OK, "pods can have their own", "")
}

func (o Options) fileLimit(context.Context) []Finding {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return one("open files", Warn, err.Error(), "")
	}
	detail := fmt.Sprintf("hard limit %d", lim.Max)
	if lim.Max < wantFiles {
		return one("open files", Warn, detail, fmt.Sprintf("raise LimitNOFILE to %d or more", wantFiles))
	}
	return one("open files", OK, detail, "")
}

func (o Options) sysctls(context.Context) []Finding {
	var out []Finding
	for _, s := range []struct{ name, want, hint string }{
		{"net.ipv4.ip_forward", "1", "pods reach nothing outside the node; the daemon sets it at start"},
		{"net.ipv6.conf.all.forwarding", "1", "as above for IPv6; the daemon sets it at start"},
		{"net.ipv4.conf.all.rp_filter", "0 2", "strict reverse path filtering drops translated packets; the daemon loosens it on its links"},
		{"kernel.unprivileged_bpf_disabled", "1 2", "any user may load BPF programs"},
	} {
		data, err := os.ReadFile(o.path("/proc/sys/" + strings.ReplaceAll(s.name, ".", "/")))
		if err != nil {
			continue // this kernel does not have it, so nothing is wrong with it
		}
		value := strings.TrimSpace(string(data))
		if !strings.Contains(" "+s.want+" ", " "+value+" ") {
			out = append(out, Finding{Check: "sysctls", Level: Warn, Detail: s.name + " is " + value, Hint: s.hint})
		}
	}
	if len(out) == 0 {
		return one("sysctls", OK, "as needed", "")
	}
	return out
}
