// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
	"github.com/nodeagent/nodeagent/cri/shim"
	"github.com/nodeagent/nodeagent/cri/shim/link"
)

// newShimRig is a rig whose pods have nodeagent's own shim, built from this tree.
func newShimRig(t *testing.T) *rig {
	t.Helper()
	return newShimRigWith(t, func(*rig) {})
}

// newShimRigWith is newShimRig with a change before the server starts.
func newShimRigWith(t *testing.T, change func(*rig)) *rig {
	t.Helper()
	containerdtest.NeedRoot(t)
	path := filepath.Join(t.TempDir(), shim.Program)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "../cmd/nodeagent-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the shim: %v: %s", err, out)
	}
	t.Setenv("PATH", filepath.Dir(path)+":"+os.Getenv("PATH"))
	return newRigWith(t, change)
}

// counter writes numbered lines as fast as it can, for ever.
const counter = "exec seq 1 1000000000"

// lines reads the log files of a counter in their order and fails unless the numbers follow each other; it returns the last.
func (r *rig) lines(files ...string) int {
	r.t.Helper()
	n, begun := 0, ""
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			r.t.Fatal(err)
		}
		in := bufio.NewScanner(f)
		for in.Scan() {
			parts := bytes.SplitN(in.Bytes(), []byte(" "), 4)
			if len(parts) != 4 || string(parts[1]) != "stdout" {
				r.t.Fatalf("%s: malformed line %q", file, in.Text())
			}
			begun += string(parts[3])
			if string(parts[2]) == "P" {
				continue // its end was long in coming, or was cut by the kill
			}
			if begun != strconv.Itoa(n+1) {
				r.t.Fatalf("%s: line %s after %d", file, begun, n)
			}
			n, begun = n+1, ""
		}
		if err := f.Close(); err != nil {
			r.t.Fatal(err)
		}
	}
	return n
}

// grows waits until a log has grown by some lines' worth.
func (r *rig) grows(file string) {
	r.t.Helper()
	size := func() int64 {
		info, err := os.Stat(file)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	before := size()
	r.eventually("the log grows", func() bool { return size() > before+200<<10 })
}

// processes are those whose command line has all of the words.
func processes(tb testing.TB, words ...string) []int {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	var out []int
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || slices.ContainsFunc(words, func(w string) bool { return !bytes.Contains(line, []byte(w)) }) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(file, "/")[2])
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, pid)
	}
	return out
}

// TestRootShimSurvivesItsDaemons kills nodeagent and containerd while a container writes as fast as it can.
func TestRootShimSurvivesItsDaemons(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("loud")
	sb := r.runPod(pod)
	r.stop()
	child := r.startDaemon()
	id := r.run(sb, pod, r.shell("count", counter))
	log := filepath.Join(r.logs, "count.log")
	r.grows(log)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed
	if err := r.conn.Close(); err != nil {
		t.Error(err)
	}
	r.grows(log)
	for _, pid := range processes(t, "containerd\x00", r.daemon.Dir) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	r.grows(log)
	r.start()
	r.eventually("containerd is back", func() bool { return r.containerd.Check(t.Context()) == nil })
	if st := r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container after both were killed: %v", st)
	}
	r.grows(log)
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if st := r.exited(id); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	t.Logf("%d lines", r.lines(log))
}

// TestRootShimRotates reopens the log while a container writes as fast as it can.
func TestRootShimRotates(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("loud")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("count", counter))
	log := filepath.Join(r.logs, "count.log")
	var files []string
	for i := range 10 {
		r.grows(log)
		old := fmt.Sprintf("%s.%d", log, i)
		if err := os.Rename(log, old); err != nil {
			t.Fatal(err)
		}
		if _, err := r.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		files = append(files, old)
	}
	r.grows(log)
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	r.exited(id)
	t.Logf("%d lines in %d files", r.lines(append(files, log)...), len(files)+1)
	if _, err := r.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err == nil {
		t.Error("reopened the log of a container that has ended")
	}
}

// TestRootShimDiesAlone kills one pod's shim.
func TestRootShimDiesAlone(t *testing.T) {
	r := newShimRig(t)
	ids := map[string]string{}
	for _, name := range []string{"one", "two"} {
		pod := r.pod(name)
		ids[name] = r.run(r.runPod(pod), pod, r.shell("c-"+name, "sleep 1000"))
	}
	bundle := filepath.Join(r.daemon.Config.State, "io.containerd.runtime.v2.task", containerd.Namespace, ids["one"])
	socket, err := os.ReadFile(filepath.Join(bundle, "nodeagent-shim.socket"))
	if err != nil {
		t.Fatal(err)
	}
	victim := parent(t, r.pid(ids["one"]))
	if other := parent(t, r.pid(ids["two"])); other == victim {
		t.Fatal("two pods share a shim")
	}
	if err := unix.Kill(victim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := r.exited(ids["one"]); st.ExitCode != 137 && st.ExitCode != 255 {
		t.Errorf("a container without its shim: %v", st)
	}
	r.eventually("the dead shim's socket is removed", func() bool {
		_, err := os.Stat(string(socket))
		return os.IsNotExist(err)
	})
	if st := r.status(ids["two"]); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("another pod's container: %v", st)
	}
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: ids["two"], Cmd: []string{"echo", "hi"}, Timeout: 20})
	if err != nil || string(resp.GetStdout()) != "hi\n" {
		t.Errorf("exec in another pod: %v, %v", resp, err)
	}
}

// parent is the parent of a process: a container's is its shim.
func parent(t *testing.T, pid string) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRootShimAttach speaks to containers over the pod's socket, with pipes and with a terminal.
func TestRootShimAttach(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("talk")
	sb := r.runPod(pod)
	for _, tty := range []bool{false, true} {
		name := fmt.Sprintf("cat-%v", tty)
		cfg := r.shell(name, "echo ready; cat; echo done >&2")
		cfg.Stdin, cfg.StdinOnce, cfg.Tty = true, true, tty
		id := r.run(sb, pod, cfg)
		r.eventually("the container is ready", func() bool { return strings.Contains(r.output(name), "ready") })
		all := r.converse(sb, id, tty)
		r.exited(id)
		if !strings.Contains(all, "hello") || !strings.Contains(all, "done") {
			t.Errorf("tty %v: attached to %q", tty, all)
		}
		if got := r.output(name); !strings.Contains(got, "hello") || !strings.Contains(got, "done") {
			t.Errorf("tty %v: log %q", tty, got)
		}
	}
}

// converse attaches, says hello, ends the input and returns what came back on both streams.
func (r *rig) converse(sandbox, id string, tty bool) string {
	r.t.Helper()
	conn, err := link.Dial(r.t.Context(), filepath.Join(r.daemon.Dir, "na/sandboxes", sandbox))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := link.WriteLine(conn, link.Request{Op: link.OpAttach, Container: id, Stdin: true, Stdout: true, Stderr: true}); err != nil {
		r.t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	var answer link.Response
	if err := link.ReadLine(in, &answer); err != nil || answer.Error != "" {
		r.t.Fatalf("answer %+v, %v", answer, err)
	}
	end := []byte(nil)
	if tty {
		end = []byte{4} // the terminal's end of file
	}
	for _, p := range [][]byte{[]byte("hello\n"), end} {
		if err := link.WriteFrame(conn, link.Stdin, p); err != nil {
			r.t.Fatal(err)
		}
	}
	var all strings.Builder
	for {
		_, p, err := link.ReadFrame(in, nil)
		if err != nil {
			return all.String()
		}
		all.Write(p)
	}
}

// TestRootShimOOM has the kernel kill a container.
func TestRootShimOOM(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("greedy")
	cfg := r.shell("eat", "tail /dev/zero")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	id := r.run(r.runPod(pod), pod, cfg)
	if st := r.exited(id); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("status %v", st)
	}
}

// daemonConfig is what the child process of startDaemon runs with.
type daemonConfig struct {
	CRI        cri.Config
	Containerd containerd.Config
	DB         string
}

const daemonEnv = "NODEAGENT_TEST_DAEMON"

// startDaemon serves the CRI in a process of its own, so that it can be killed.
func (r *rig) startDaemon() *exec.Cmd {
	r.t.Helper()
	raw, err := json.Marshal(daemonConfig{CRI: r.cfg, Containerd: r.daemon.Config, DB: filepath.Join(r.daemon.Dir, "state.db")})
	if err != nil {
		r.t.Fatal(err)
	}
	child := exec.CommandContext(r.t.Context(), os.Args[0], "-test.run=^TestDaemonProcess$", "-test.timeout=5m")
	child.Env = append(os.Environ(), daemonEnv+"="+string(raw))
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.dial()
	r.eventually("the CRI serves in another process", func() bool {
		s, err := r.rt.Status(r.t.Context(), &runtimeapi.StatusRequest{})
		return err == nil && s != nil
	})
	return child
}

// TestDaemonProcess is the child of startDaemon and nothing otherwise.
func TestDaemonProcess(t *testing.T) {
	raw := os.Getenv(daemonEnv)
	if raw == "" {
		return
	}
	var cfg daemonConfig
	if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(cfg.DB, 0o600, &bbolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c, err := containerd.New(cfg.Containerd, containerd.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := cri.New(ctx, cfg.CRI, cri.Deps{DB: db, Containerd: c, Network: newNetwork(), Log: containerdtest.Log(t), Version: "0.1.0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	<-t.Context().Done() // it is killed before
}

// TestRootShimUserNamespace runs a container in a user namespace: its root file system and a volume appear with the
// owners of the namespace.
func TestRootShimUserNamespace(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("mapped")
	userns := &runtimeapi.UserNamespace{
		Uids: []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 65536}},
		Gids: []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 65536}},
	}
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns
	sb := r.runPod(pod)
	out := r.sh(sb, pod, "who", "stat -c %u /bin/busybox /etc/hosts; cat /proc/self/uid_map; touch /new && stat -c %u /new", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns
	})
	if got := strings.Join(strings.Fields(out), " "); got != "0 0 0 1048576 65536 0" {
		t.Errorf("got %q", got)
	}
}

// TestRootShimLeaksNothing runs commands and containers in a pod whose shim stays, and counts what that holds.
func TestRootShimLeaksNothing(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("busy")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("stays", "sleep 1000"))
	shimPID := parent(t, r.pid(id))
	work := func(n int) {
		for i := range 5 {
			resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Timeout: 30})
			if err != nil || resp.ExitCode != 3 || string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" {
				t.Fatalf("exec %d: %v, %v", i, resp, err)
			}
		}
		cfg := r.shell(fmt.Sprintf("goes%d", n), "echo x")
		cfg.Tty = n%2 == 0
		goes := r.run(sb, pod, cfg)
		r.exited(goes)
		if _, err := r.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: goes}); err != nil {
			t.Fatal(err)
		}
	}
	work(0)
	work(1)
	before := held(t, shimPID)
	for n := range 4 {
		work(n + 2)
	}
	r.eventually("the shim holds what it held before", func() bool { return held(t, shimPID) <= before })
	if children := processes(t, r.daemon.Dir, "runc"); len(children) > 0 {
		t.Errorf("OCI runtimes left: %v", children)
	}
}

// TestRootShimSignals looks at what a container and a command in it inherit: no signal may be ignored or blocked, no descriptor
// but the three, no variable of the shim.
func TestRootShimSignals(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("clean")
	sb := r.runPod(pod)
	const script = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls /proc/$$/fd; env | grep -c GOMAXPROCS; ulimit -n"
	out := strings.Fields(r.sh(sb, pod, "look", script+"; true"))
	id := r.run(sb, pod, r.shell("stays", "sleep 1000"))
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 30})
	if err != nil {
		t.Fatal(err)
	}
	none := "0000000000000000"
	want := []string{"SigBlk:", none, "SigIgn:", none, "0", "1", "2", "0"}
	for what, got := range map[string][]string{"container": out, "exec": strings.Fields(string(resp.Stdout))} {
		if len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) {
			t.Errorf("%s: %v, want %v and a limit", what, got, want)
		}
	}
}

// TestRootShimOutlivesItsContainers restarts a pod's only container over and over: the end of one must not take the shim from
// under the next.
func TestRootShimOutlivesItsContainers(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("loop")
	sb := r.runPod(pod)
	for i := range 10 {
		cfg := r.shell("again", "exit 1")
		cfg.Metadata.Attempt = uint32(i) //nolint:gosec // small
		id := r.create(sb, pod, cfg)
		next := r.shell("next", "sleep 1000")
		next.Metadata.Attempt = uint32(i) //nolint:gosec // small
		other := r.create(sb, pod, next)
		r.startContainer(id)
		r.startContainer(other) // while the first one ends
		if st := r.exited(id); st.ExitCode != 1 || st.Reason != "Error" {
			t.Fatalf("attempt %d: %v", i, st)
		}
		for _, c := range []string{id, other} {
			if _, err := r.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// held counts a process's descriptors.
func held(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
