// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"                //nolint:depguard // the client that kubectl is made of
	"k8s.io/client-go/tools/remotecommand" //nolint:depguard // the client that kubectl is made of
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
)

// execRig is a rig with two handlers, "direct" and "runtime", that differ in who makes the processes of exec, and a runc that
// notes how it is called.
type execRig struct {
	*rig
	calls string
}

func newExecRig(t *testing.T) *execRig {
	t.Helper()
	dir := t.TempDir()
	e := &execRig{calls: filepath.Join(dir, "calls")}
	found, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	wrapper := filepath.Join(dir, "runc")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\nexec %s \"$@\"\n", e.calls, found)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	e.rig = newShimRig(t)
	e.stop()
	for _, name := range []string{cri.ExecDirect, cri.ExecRuntime} {
		h := e.cfg.Handlers["runc"]
		h.Binary, h.Exec = wrapper, name
		e.cfg.Handlers[name] = h
	}
	e.start()
	return e
}

// execs counts the calls of `runc exec`.
func (e *execRig) execs() int {
	e.t.Helper()
	b, err := os.ReadFile(e.calls)
	if err != nil {
		e.t.Fatal(err)
	}
	return strings.Count(string(b), " exec --process ")
}

// container runs a pod and a container under a handler, and returns when the container's shell has become its command.
func (e *execRig) container(handler, name string, change func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)) string {
	e.t.Helper()
	pod := e.pod(name + "-" + handler)
	pod.Hostname = name
	cfg := e.shell(name+"-"+handler, "exec sleep 1000001")
	change(pod, cfg)
	resp, err := e.rt.RunPodSandbox(e.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		e.t.Fatalf("RunPodSandbox: %v", err)
	}
	others := len(processes(e.t, "sleep", "1000001"))
	id := e.run(resp.PodSandboxId, pod, cfg)
	e.eventually("the container's command runs", func() bool { return len(processes(e.t, "sleep", "1000001")) > others })
	return id
}

// dressOf runs a command that stays and returns what the kernel says of its process, with what differs from pod to pod left out.
func (e *execRig) dressOf(id, marker string) map[string]string {
	e.t.Helper()
	first := processes(e.t, "sleep", "1000001")
	go func() {
		_, _ = e.rt.ExecSync(e.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", marker}}) // killed below
	}()
	var pids []int
	e.eventually("the command runs", func() bool {
		pids = processes(e.t, "sleep", marker)
		return len(pids) == 1
	})
	proc := fmt.Sprintf("/proc/%d/", pids[0])
	out := map[string]string{}
	read := func(file string) string {
		b, err := os.ReadFile(proc + file)
		if err != nil {
			e.t.Fatal(err)
		}
		return string(b)
	}
	for line := range strings.Lines(read("status")) {
		key, value, _ := strings.Cut(line, ":")
		if !slices.Contains([]string{
			"Pid", "Tgid", "PPid", "NSpid", "NStgid", "NSpgid", "NSsid", "voluntary_ctxt_switches",
			"nonvoluntary_ctxt_switches", "State", "SigQ", "FDSize",
			"SigPnd", // runc's own preemption signal, at times
		}, key) && !strings.HasPrefix(key, "Vm") && !strings.HasPrefix(key, "Rss") {
			out["status "+key] = strings.TrimSpace(value)
		}
	}
	for _, file := range []string{"limits", "oom_score_adj", "environ", "loginuid", "personality", "timerslack_ns", "sched", "setgroups", "cgroup"} {
		out[file] = read(file)
	}
	out["sched"] = regexp.MustCompile(`(?m)^(policy|prio) .*$`).FindString(out["sched"])
	out["cgroup"] = regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(out["cgroup"], "ID")
	out["cgroup"] = strings.ReplaceAll(out["cgroup"], "-runtime", "-direct")
	for _, link := range []string{"cwd", "exe"} {
		out[link], _ = os.Readlink(proc + link)
	}
	var st unix.Stat_t
	for fd := range 3 {
		if err := unix.Stat(fmt.Sprintf("%sfd/%d", proc, fd), &st); err != nil {
			e.t.Fatal(err)
		}
		out[fmt.Sprint("fd ", fd)] = fmt.Sprintf("%o %d %d", st.Mode, st.Uid, st.Gid)
	}
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		e.t.Fatal(err)
	}
	out["fds"] = fmt.Sprint(len(fds))
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "user", "cgroup", "time"} {
		mine, err := os.Readlink(proc + "ns/" + ns)
		if err != nil {
			e.t.Fatal(err)
		}
		for _, pid := range first {
			if theirs, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns)); theirs == mine {
				out["ns "+ns] = "the container's"
			}
		}
	}
	out["session leader"] = fmt.Sprint(strings.Fields(read("stat"))[5] == fmt.Sprint(pids[0]))
	_ = unix.Kill(pids[0], unix.SIGKILL)
	return out
}

// TestRootExecDirectIsRuncs compares the processes that the shim makes with those of runc, of containers of many kinds.
func TestRootExecDirectIsRuncs(t *testing.T) {
	e := newExecRig(t)
	defaults := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	kinds := map[string]func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig){
		"plain": func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {},
		"filtered": func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Seccomp = defaults
		},
		"restricted": func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			sc := c.Linux.SecurityContext
			sc.Seccomp, sc.NoNewPrivs = defaults, true
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1234}, &runtimeapi.Int64Value{Value: 55}
			sc.SupplementalGroups = []int64{77, 88}
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 900, MemoryLimitInBytes: 64 << 20}
			c.WorkingDir = "/tmp"
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b=c")}, {Key: "A", Value: []byte("d")}}
		},
		"ambient": func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			sc := c.Linux.SecurityContext
			sc.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
			sc.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_RAW"}}
		},
		"privileged": func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			p.Linux.SecurityContext.Privileged, c.Linux.SecurityContext.Privileged = true, true
		},
		"host": func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			o := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE}
			p.Linux.SecurityContext.NamespaceOptions, c.Linux.SecurityContext.NamespaceOptions = o, o
		},
		"shared": func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
			p.Linux.SecurityContext.NamespaceOptions, c.Linux.SecurityContext.NamespaceOptions = o, o
		},
		"mapped": func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: 2000000, Length: 65536}}
			o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{
				Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids,
			}}
			p.Linux.SecurityContext.NamespaceOptions, c.Linux.SecurityContext.NamespaceOptions = o, o
			c.Linux.SecurityContext.Seccomp = defaults
		},
	}
	marker := 2000000
	for name, change := range kinds {
		var got [2]map[string]string
		for i, handler := range []string{cri.ExecRuntime, cri.ExecDirect} {
			id := e.container(handler, name, change)
			before := e.execs()
			marker++
			got[i] = e.dressOf(id, fmt.Sprint(marker))
			if n := e.execs() - before; n != 1-i {
				t.Errorf("%s: %s: runc was called %d times", name, handler, n)
			}
		}
		for key, want := range got[0] {
			if got[1][key] != want {
				t.Errorf("%s: %s:\nruntime %q\ndirect  %q", name, key, want, got[1][key])
			}
		}
	}
}

// TestRootExecDirectAnswers compares what an exec answers: output, exit codes, and the words of failures.
func TestRootExecDirectAnswers(t *testing.T) {
	e := newExecRig(t)
	ids := map[string]string{}
	for _, handler := range []string{cri.ExecRuntime, cri.ExecDirect} {
		ids[handler] = e.container(handler, "answers", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
		})
	}
	for _, cmd := range [][]string{
		{"sh", "-c", "echo out; echo err >&2; exit 3"},
		{"sh", "-c", "kill -9 $$"},
		{"/bin/sh", "-c", "echo $HOME $PWD; id; umask; pwd"},
		{"nosuch"},
		{"/no/such"},
		{"./nosuch"},
		{"/etc"},
		{"/etc/passwd"},
		{""},
		{"etc/passwd"},
		{"sh", "-c", "ls -l /proc/self/fd | wc -l"},
		{"cat", "/proc/self/oom_score_adj"},
		{"sh", "-c", "cd /proc/self/cwd && pwd"},
	} {
		answer := func(handler string) string {
			resp, err := e.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ids[handler], Cmd: cmd, Timeout: 30})
			if err != nil {
				return regexp.MustCompile(`[0-9a-f]{64}`).ReplaceAllString(err.Error(), "ID")
			}
			return fmt.Sprintf("%d %q %q", resp.ExitCode, resp.Stdout, resp.Stderr)
		}
		if want, got := answer(cri.ExecRuntime), answer(cri.ExecDirect); got != want {
			t.Errorf("%q:\nruntime %s\ndirect  %s", cmd, want, got)
		}
	}
}

// TestRootExecDirectTerminal compares terminals: whose they are, that they are the session's, and their size.
func TestRootExecDirectTerminal(t *testing.T) {
	e := newExecRig(t)
	const script = `T=$(tty); echo $T; stat -c '%a %u %g %t' $T; until [ "$(stty size 2>/dev/null)" = "33 77" ]; do sleep 0.01; done; ` +
		`: <$T >/dev/tty && id -u`
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig){
		"user": func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1234}
		},
		"mapped-tty": func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			ids := []*runtimeapi.IDMapping{{HostId: 3000000, Length: 65536}}
			o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{
				Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids,
			}}
			p.Linux.SecurityContext.NamespaceOptions, c.Linux.SecurityContext.NamespaceOptions = o, o
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 7}
		},
	} {
		var got [2]string
		for i, handler := range []string{cri.ExecRuntime, cri.ExecDirect} {
			id := e.container(handler, name, change)
			before := e.execs()
			resp, err := e.rt.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Tty: true, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			client, err := remotecommand.NewWebSocketExecutor(&rest.Config{Host: resp.Url}, http.MethodGet, resp.Url)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			o := remotecommand.StreamOptions{Stdin: strings.NewReader("typed\n\x04"), Stdout: &out, Tty: true, TerminalSizeQueue: one{make(chan remotecommand.TerminalSize, 1)}}
			if err := client.StreamWithContext(t.Context(), o); err != nil {
				t.Errorf("%s: %s: %v, %q", name, handler, err, out.String())
			}
			lines := strings.Fields(out.String()) // the echo of what is typed comes when it comes
			slices.Sort(lines)
			if got[i] = strings.Join(lines, " "); e.execs()-before != 1-i {
				t.Errorf("%s: %s: runc was called %d times", name, handler, e.execs()-before)
			}
		}
		if got[0] != got[1] {
			t.Errorf("%s:\nruntime %q\ndirect  %q", name, got[0], got[1])
		}
	}
}

// one is a terminal of one size.
type one struct {
	done chan remotecommand.TerminalSize
}

func (o one) Next() *remotecommand.TerminalSize {
	select {
	case o.done <- remotecommand.TerminalSize{}:
		return &remotecommand.TerminalSize{Width: 77, Height: 33}
	default:
		return nil
	}
}
