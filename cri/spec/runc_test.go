// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// TestRootRuncRuns has the real runc run a container from built specs, joined to the namespaces of a process of the test's own,
// and asks inside what came of it.
func TestRootRuncRuns(t *testing.T) {
	needRoot(t)
	runc := filepath.Join(cache(), "bin", "runc")
	if _, err := os.Stat(runc); err != nil {
		t.Fatalf("runc has to be built first: %v", err)
	}
	host, err := spec.Probe()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*spec.Input)
		script string
		want   string
	}{
		"plain": {
			func(in *spec.Input) {
				in.Config.Linux.SecurityContext.RunAsUser = value(101)
				in.Config.Linux.SecurityContext.Seccomp = profile(0, "")
				in.Config.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
				in.Config.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore"}
			},
			`id -u; id -G; hostname; cat /etc/hostname; pwd; grep -c Seccomp:.*2 /proc/self/status; stat -c %a /dev/shm; cat /data/file`,
			"101|102 50|web-0|web-0|/|1|1777|hello",
		},
		"ambient": {
			func(in *spec.Input) {
				in.Config.Linux.SecurityContext.RunAsUser = value(5)
				in.Config.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{
					DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
				}
			},
			`grep -E 'CapEff|CapAmb|CapBnd' /proc/self/status | tr -d '\t'`,
			"CapEff:0000000000000400|CapBnd:0000000000000400|CapAmb:0000000000000400",
		},
		"privileged": {
			func(in *spec.Input) {
				in.Config.Linux.SecurityContext.Privileged = true
				in.Sandbox.Config.Linux.SecurityContext.Privileged = true
			},
			`grep -c ' /sys sysfs rw' /proc/mounts; test -e /dev/null && echo node; touch /ro 2>/dev/null && echo rw`,
			"1|node|rw",
		},
		"read-only": {
			func(in *spec.Input) {
				in.Config.Linux.SecurityContext.ReadonlyRootfs = true
				in.Config.Mounts[0].Readonly, in.Config.Mounts[0].RecursiveReadOnly = true, true
				in.Config.Mounts[0].MountOptions = []string{"noexec", "nodev", "nosuid"}
			},
			`touch /x 2>&1 | sed 's/.*: //'; touch /data/x 2>&1 | sed 's/.*: //'; grep -o ' /data .*' /proc/mounts | cut -d' ' -f4 | cut -d, -f1-4`,
			"Read-only file system|Read-only file system|ro,nosuid,nodev,noexec",
		},
	} {
		t.Run(name, func(t *testing.T) {
			in, _ := fixture()
			in.Host, in.System = host, spec.NewSystem()
			bundle := newBundle(t, &in)
			tt.change(&in)
			in.Config.Command = []string{"/bin/busybox", "sh", "-c", tt.script}
			got := strings.ReplaceAll(strings.TrimSpace(runOnce(t, runc, bundle, in)), "\n", "|")
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// newBundle makes a root with busybox and the pod's files and namespaces, and points the input at them.
func newBundle(t *testing.T, in *spec.Input) string {
	t.Helper()
	dir := t.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"rootfs/bin/busybox": busybox, "pod/hostname": []byte("web-0\n"), "pod/hosts": nil, "pod/resolv.conf": nil, "data/file": []byte("hello\n"),
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range []string{"sh", "id", "cat", "hostname", "grep", "stat", "sed", "touch", "cut", "tr", "pwd", "test"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "rootfs/bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := holdNamespaces(t)
	ns := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, kind) }
	in.Sandbox.Namespaces = spec.Namespaces{Net: ns("net"), IPC: ns("ipc"), UTS: ns("uts")}
	in.Sandbox.Hostname, in.Sandbox.Hosts = filepath.Join(dir, "pod/hostname"), filepath.Join(dir, "pod/hosts")
	in.Sandbox.ResolvConf, in.Sandbox.Shm = filepath.Join(dir, "pod/resolv.conf"), ""
	in.Config.Mounts = []*mount{{ContainerPath: "/data", HostPath: filepath.Join(dir, "data")}}
	in.ID = fmt.Sprintf("spec-test-%d-%d", os.Getpid(), pid)
	parent := fmt.Sprintf("nodeagent-spec-test-%d", os.Getpid())
	in.Sandbox.Config.Linux.CgroupParent = "/" + parent
	t.Cleanup(func() {
		for _, pattern := range []string{"/sys/fs/cgroup/" + parent, "/sys/fs/cgroup/*/" + parent} {
			dirs, _ := filepath.Glob(pattern)
			for _, d := range dirs {
				_ = os.Remove(d)
			}
		}
	})
	return dir
}

// holdNamespaces starts a process in namespaces of its own; it lives as long as the test.
func holdNamespaces(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("/bin/busybox", "sh", "-c", "hostname web-0; echo ready; cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if _, err := stdout.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func runOnce(t *testing.T, runc, bundle string, in spec.Input) string {
	t.Helper()
	raw, err := json.Marshal(build(t, in))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), runc, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, in.ID).CombinedOutput()
	if err != nil {
		t.Fatalf("runc: %v: %s", err, out)
	}
	return string(out)
}
