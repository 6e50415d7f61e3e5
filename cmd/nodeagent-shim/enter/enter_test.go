// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("not root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
}

// run has the helper make a list's calls in no container; what it makes is a child like any other.
func run(t *testing.T, d *dress, files ...*os.File) (int, error) {
	t.Helper()
	reaper := reap.New()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go reaper.Run(ctx)
	defer reaper.Starting()()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	image, err := seal("list", d.image(), 0)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _, _ = null.Close(), image.Close(), r.Close() }()
	c := &Container{program: &Program{}}
	pid, err := c.spawn(append([]*os.File{null, null, null, image, w}, files...), nil)
	if cerr := w.Close(); cerr != nil || err != nil {
		t.Fatal(err, cerr)
	}
	made, ended, err := d.follow(t.Context(), reaper, pid, r)
	if err != nil {
		return 0, err
	}
	_ = made
	return int((<-ended).Status), nil
}

func simple(args ...string) *dress {
	return &dress{c: &Container{}, p: &Process{Args: args, Cwd: "/", Capabilities: &capabilities{}}}
}

func (d *dress) fork() {
	d.call("report", unix.SYS_FCNTL, reportFD, unix.F_SETFD, unix.FD_CLOEXEC)
	d.call("make process", unix.SYS_CLONE, unix.CLONE_PARENT|uint64(unix.SIGCHLD)).flags = flagClone
}

// TestHelper holds the helper's loop against what the list says: order, results, errors, branches.
func TestHelper(t *testing.T) {
	d := simple("sh", "-c", "exit $N")
	d.fork()
	at := d.words(0)
	d.call("bad", unix.SYS_CLOSE, 99).allow[0] = uint16(unix.EBADF)
	d.call("worse", unix.SYS_CLOSE, 98).flags = flagAny
	d.call("pid", unix.SYS_GETPPID).out = at
	d.check("parent", at, 0xffffffff, uint64(os.Getpid()), uintptr(unix.ESRCH)) //nolint:gosec // positive
	d.call("passes over the next", unix.SYS_CLOSE, 97).skip = 1
	d.call("not made", unix.SYS_EXIT, 1)
	d.check("differs", at, 0xffffffff, 0, uintptr(unix.ESRCH)).flags = flagNot
	d.lookup([]string{"PATH=/nowhere:/etc:/usr/bin:/bin", "N=7"})
	if code, err := run(t, d); err != nil || code != 7 {
		t.Errorf("%d, %v", code, err)
	}
	for want, d := range map[string]*dress{
		`exec: "nosuch": executable file not found in $PATH`:                        simple("nosuch"),
		`exec: "/etc": is a directory`:                                              simple("/etc"),
		`exec: "/no/such": stat /no/such: no such file or directory`:                simple("/no/such"),
		`exec: "passwd": cannot run executable found relative to current directory`: simple("passwd"),
		`exec: "/proc/self/mem": permission denied`:                                 simple("/proc/self/mem"),
	} {
		d.fork()
		env := []string{"PATH=/bin"}
		if d.p.Args[0] == "passwd" {
			file := t.TempDir() + "/passwd"
			if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil { //nolint:gosec // a program
				t.Fatal(err)
			}
			d.call("directory", unix.SYS_CHDIR, d.text(filepath.Dir(file)))
			env = []string{"PATH=:/bin"}
		}
		d.lookup(env)
		if _, err := run(t, d); err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, ErrUnable) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

// TestRootNoWayOut is CVE-2024-21626: a working directory that leads out of the container by a descriptor that was left open.
// Nothing is left open; and were it, the directory would be refused.
func TestRootNoWayOut(t *testing.T) {
	needRoot(t)
	host, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close() }()
	jail := t.TempDir()
	begin := func() *dress {
		d := simple("sh")
		d.last = -1
		d.fork()
		d.call("root", unix.SYS_CHROOT, d.text(jail))
		return d
	}
	d := begin()
	d.call("leak", unix.SYS_FCHDIR, pidFD)
	d.p.Cwd = "." // stays where the leak led
	d.user()
	if _, err := run(t, d, host); !errors.Is(err, ErrUnable) || !strings.Contains(err.Error(), "outside of the container") {
		t.Errorf("a directory of the host: %v", err)
	}
	d = begin()
	d.inside()
	d.call("leak", unix.SYS_FCHDIR, pidFD)
	if _, err := run(t, d, host); !errors.Is(err, unix.EBADF) {
		t.Errorf("a descriptor of the host is left open: %v", err)
	}
}

// TestRootHidden looks at the helper from outside before it becomes a program: another user, even one with CAP_SYS_PTRACE in a user
// namespace of its own, does not see into it, because it is not dumpable; and what it runs from cannot be written.
func TestRootHidden(t *testing.T) {
	needRoot(t)
	d := simple("sh")
	d.outside()
	dumpable := d.words(9)
	d.call("ask", unix.SYS_PRCTL, unix.PR_GET_DUMPABLE).out = dumpable
	d.check("dumpable", dumpable, 0xffffffff, 0, uintptr(unix.EPERM))
	d.fail("hidden", unix.EDOM)
	d.ops = slices.DeleteFunc(d.ops, func(o op) bool { return o.nr == unix.SYS_SETNS || o.nr == unix.SYS_CLONE })
	d.names = slices.DeleteFunc(d.names, func(n string) bool { return n == "enter namespaces" || n == "make process" })
	if _, err := run(t, d); !errors.Is(err, unix.EDOM) {
		t.Errorf("%v", err)
	}
	p := &Program{}
	path, err := p.path()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EPERM) {
			t.Errorf("the helper can be written: %v", err)
		}
	}
}

func TestUnable(t *testing.T) {
	const fine = `"args":["x"],"cwd":"/","capabilities":{}`
	for text, able := range map[string]bool{
		`{` + fine + `}`:                                   true,
		`{` + fine + `,"scheduler":null}`:                  true,
		`{` + fine + `,"futureHardening":true}`:            false,
		`{` + fine + `,"scheduler":{"policy":"x"}}`:        false,
		`{` + fine + `,"ioPriority":{"class":"x"}}`:        false,
		`{` + fine + `,"execCPUAffinity":{"final":"0"}}`:   false,
		`{` + fine + `,"apparmorProfile":"x"}`:             false,
		`{` + fine + `,"selinuxLabel":"x"}`:                false,
		`{"args":["x\u0000"],"cwd":"/","capabilities":{}}`: false,
		`{"args":[],"cwd":"/","capabilities":{}}`:          false,
		`{"args":["x"],"cwd":"/"}`:                         false,
	} {
		if _, err := ReadProcess([]byte(text)); (err == nil) != able || err != nil && !errors.Is(err, ErrUnable) {
			t.Errorf("%s: %v", text, err)
		}
	}
	const ns = `"namespaces":[{"type":"mount"},{"type":"pid"}]`
	for text, able := range map[string]bool{
		`{"linux":{` + ns + `}}`: true,
		`{"linux":{"namespaces":[{"type":"mount"},{"type":"time"}]}}`:                                      false,
		`{"linux":{"namespaces":[{"type":"pid"}]}}`:                                                        false,
		`{"linux":{` + ns + `,"personality":{"domain":"LINUX32"}}}`:                                        false,
		`{"linux":{` + ns + `,"intelRdt":{"closID":"x"}}}`:                                                 false,
		`{"process":{"apparmorProfile":"x"},"linux":{` + ns + `}}`:                                         false,
		`{"linux":{` + ns + `,"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`:                              true,
		`{"linux":{` + ns + `,"seccomp":{"defaultAction":"x","listenerPath":"/x"}}}`:                       false,
		`{"linux":{` + ns + `,"seccomp":{"defaultAction":"x","flags":["SECCOMP_FILTER_FLAG_X"]}}}`:         false,
		`{"linux":{` + ns + `,"seccomp":{"defaultAction":"x","syscalls":[{"action":"SCMP_ACT_NOTIFY"}]}}}`: false,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(Options{Bundle: dir, Runtime: "/bin/sh"}); (err == nil) != able || err != nil && !errors.Is(err, ErrUnable) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	home := func() string { return "/h" }
	for _, tt := range []struct{ in, want string }{
		{"A=1 B=2 A=3", "B=2 A=3 HOME=/h"}, {"HOME=/x", "HOME=/x"}, {"HOME= A=1", "A=1 HOME=/h"}, {"A=", "A= HOME=/h"},
	} {
		if got, err := environment(strings.Fields(tt.in), home); err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, %v", tt.in, got, err)
		}
	}
	for _, bad := range []string{"A", "=1"} {
		if _, err := environment([]string{bad}, home); !errors.Is(err, ErrUnable) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestHome reads a container's /etc/passwd, whatever is in its place.
func TestHome(t *testing.T) {
	dir := t.TempDir()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	file := filepath.Join(dir, "etc/passwd")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.WriteFile(file, []byte("a:x:1:1::/home/a:/sh\nbroken\nb:x:2:2::\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{1: "/home/a", 2: "", 3: "/"} {
		if got := homeOf(root, uid); got != want {
			t.Errorf("user %d: %q", uid, got)
		}
	}
	for _, trick := range []func() error{
		func() error { return os.Symlink("/etc/passwd", file) }, // the container's own, which is a link
		func() error { return unix.Mkfifo(file, 0o600) },
		func() error { return os.Mkdir(file, 0o700) },
	} {
		if err := errors.Join(os.Remove(file), trick()); err != nil {
			t.Fatal(err)
		}
		if got := homeOf(root, 0); got != "/" {
			t.Errorf("root's home: %q", got)
		}
	}
}

func TestCapSet(t *testing.T) {
	if got := capSet([]string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_CHECKPOINT_RESTORE", "CAP_NONE", "CHOWN"}, 40); got != 1|1<<13|1<<40 {
		t.Errorf("%#x", got)
	}
	if got := capSet([]string{"CAP_CHOWN", "CAP_BPF"}, 38); got != 1 {
		t.Errorf("a capability that this kernel has not: %#x", got)
	}
}
