// SPDX-License-Identifier: Apache-2.0

package doctor_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/doctor"
)

// machine makes a tree of the files that the checks read.
func machine(t *testing.T, files map[string]string) doctor.Options {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return doctor.Options{Root: root}
}

// good is a machine with everything that is read below Root.
func good() map[string]string {
	return map[string]string{
		"proc/sys/kernel/osrelease":             "6.18.1-test\n",
		"sys/kernel/btf/vmlinux":                "x",
		"proc/self/status":                      "Name:\tx\nCapEff:\t000001ffffffffff\n",
		"proc/filesystems":                      "nodev\toverlay\n\text4\n\txfs\n",
		"dev/loop-control":                      "",
		"proc/sys/net/ipv4/ip_forward":          "1\n",
		"proc/sys/net/ipv4/conf/all/rp_filter":  "2\n",
		"proc/sys/net/ipv6/conf/all/forwarding": "1\n",
		"sys/fs/cgroup/cpu/x":                   "", "sys/fs/cgroup/memory/x": "", "sys/fs/cgroup/cpuset/x": "", "sys/fs/cgroup/pids/x": "",
	}
}

// TestNRIPlugins tells programs that cannot be plugins from those that can.
func TestNRIPlugins(t *testing.T) {
	o := machine(t, map[string]string{"nri/10-good": "x", "nri/20-forgotten": "x", "nri/badly-named": "x", "nri/README": "x"})
	o.NRIPlugins = "/nri"
	for _, name := range []string{"10-good", "badly-named"} {
		if err := os.Chmod(filepath.Join(o.Root, "nri", name), 0o700); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
	}
	got := map[string]doctor.Level{}
	for _, f := range doctor.Run(t.Context(), doctor.Checks(o)) {
		if f.Check == "nri plugins" {
			got[strings.Fields(f.Detail)[0]] = f.Level
		}
	}
	want := map[string]doctor.Level{"/nri/20-forgotten": doctor.Warn, "/nri/badly-named": doctor.Fail}
	if !maps.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}

func TestFindingsNameWhatIsMissing(t *testing.T) {
	tests := []struct {
		name    string
		change  map[string]string // "" removes the file
		check   string
		level   doctor.Level
		explain string
	}{
		{"old kernel", map[string]string{"proc/sys/kernel/osrelease": "5.15.0-91-generic"}, "kernel", doctor.Fail, "6.1 or newer"},
		{"newer major", map[string]string{"proc/sys/kernel/osrelease": "7.0-rc1"}, "kernel", doctor.OK, ""},
		{"no btf", map[string]string{"sys/kernel/btf/vmlinux": ""}, "btf", doctor.Warn, "CONFIG_DEBUG_INFO_BTF"},
		{"no CAP_SYS_RESOURCE", map[string]string{"proc/self/status": "CapEff:\t000001fffeffffff\n"}, "capabilities", doctor.Warn, "oom_score_adj"},
		{"no CAP_SYS_ADMIN", map[string]string{"proc/self/status": "CapEff:\t000001ffffdfffff\n"}, "capabilities", doctor.Fail, "run as root"},
		{"no capability line", map[string]string{"proc/self/status": "Name:\tx\n"}, "capabilities", doctor.Fail, "mount /proc"},
		{"no overlay", map[string]string{"proc/filesystems": "\text4\n\txfs\n"}, "file systems", doctor.Fail, "load the module"},
		{"xfs on demand", map[string]string{
			"proc/filesystems": "\toverlay\n\text4\n", "lib/modules/6.18.1-test/modules.dep": "kernel/fs/xfs/xfs.ko.zst: kernel/lib/libcrc32c.ko\n",
		}, "file systems", doctor.OK, ""},
		{"no xfs", map[string]string{"proc/filesystems": "\toverlay\n\text4\n"}, "file systems", doctor.Warn, "xfs"},
		{"no forwarding", map[string]string{"proc/sys/net/ipv4/ip_forward": "0\n"}, "sysctls", doctor.Warn, "outside the node"},
		{"strict rp_filter", map[string]string{"proc/sys/net/ipv4/conf/all/rp_filter": "1\n"}, "sysctls", doctor.Warn, "reverse path"},
		{"no pids controller", map[string]string{"sys/fs/cgroup/pids/x": ""}, "cgroups", doctor.Fail, "enable the controllers"},
		{"no loop", map[string]string{"dev/loop-control": ""}, "loop devices", doctor.Warn, "loop"},
		{"ipvs", map[string]string{"proc/net/ip_vs": "a\nb\nc\nTCP 0A600001:01BB rr\n"}, "kube-proxy", doctor.Warn, "kube-proxy --cleanup"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := good()
			for name, content := range tt.change {
				files[name] = content
				if content == "" {
					delete(files, name)
				}
			}
			findings := doctor.Run(t.Context(), doctor.Checks(machine(t, files)))
			for _, f := range findings {
				if f.Check == tt.check && f.Level == tt.level && strings.Contains(f.Hint, tt.explain) {
					return
				}
			}
			t.Errorf("no finding %s at %s with %q in %+v", tt.check, tt.level, tt.explain, findings)
		})
	}
}

func TestPools(t *testing.T) {
	o := machine(t, map[string]string{"pool/x": "", "file": ""})
	o.Pools = []string{"/pool", "/absent", "/file/below"}
	want := map[string]doctor.Level{"pool /absent": doctor.OK, "pool /file/below": doctor.Warn}
	seen := 0
	for _, f := range doctor.Run(t.Context(), doctor.Checks(o)) {
		if level, ok := want[f.Check]; ok && f.Level != level {
			t.Errorf("%s is %s, want %s: %s", f.Check, f.Level, level, f.Detail)
		}
		if strings.HasPrefix(f.Check, "pool ") {
			seen++
		}
	}
	if seen != len(o.Pools) {
		t.Errorf("%d findings about %d pools", seen, len(o.Pools))
	}
}

func TestWorst(t *testing.T) {
	if got := doctor.Worst([]doctor.Finding{{Level: doctor.OK}, {Level: doctor.Fail}, {Level: doctor.Warn}}); got != doctor.Fail {
		t.Errorf("worst of ok, fail, warn is %s", got)
	}
	if got := doctor.Worst(nil); got != doctor.OK {
		t.Errorf("worst of nothing is %s", got)
	}
}
