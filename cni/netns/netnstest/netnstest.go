// SPDX-License-Identifier: Apache-2.0

// Package netnstest gives tests network namespaces of their own, and fails
// those that leave some.
package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// Main runs a package's tests, then what is to be done after them, and ends the
// process. It fails those that leave
// goroutines, mounted namespaces, threads in foreign namespaces, or open
// namespaces behind.
func Main(m *testing.M, after ...func() error) {
	code := m.Run()
	for _, f := range after {
		if err := f(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "after the tests:", err)
			code = 1
		}
	}
	if code == 0 {
		code = look()
	}
	os.Exit(code) //nolint:forbidigo // a TestMain has no other way to fail
}

// look returns the exit code that what is left deserves.
func look() int {
	if err := goleak.Find(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "goroutines left:", err)
		return 1
	}
	if left := leaks(); len(left) > 0 {
		_, _ = fmt.Fprintln(os.Stderr, "namespaces left:", strings.Join(left, "\n"))
		return 1
	}
	return 0
}

// leaks lists what this process left of its namespaces.
func leaks() (out []string) {
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return []string{err.Error()}
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		// A thread may end while we look; one that is there must be at home.
		if ns, err := os.Readlink(task); err == nil && ns != home {
			out = append(out, task+" is in "+ns)
		}
	}
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "net:[") {
			out = append(out, fd+" is "+target)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return append(out, err.Error())
	}
	mine := fmt.Sprintf("/%s-%d-", dirPrefix, os.Getpid())
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, mine) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// dirPrefix begins the names of the directories that namespaces are pinned in.
const dirPrefix = "nodeagent-netns"

// RequireRoot fails a test that does not run as root, so that nobody leaves it
// out without knowing.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("NODEAGENT_SKIP_ROOT=1")
	}
	if os.Getuid() != 0 {
		tb.Fatal("needs root; set NODEAGENT_SKIP_ROOT=1 to leave such tests out")
	}
}

// New makes a namespace and returns the path it is pinned at; the end of the
// test removes it.
func New(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s-%d-", dirPrefix, os.Getpid())) //nolint:usetesting // its name tells whose it is
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(dir, "net")
	if err := netns.Create(path); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			tb.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			tb.Error(err)
		}
	})
	return path
}

// Do runs f inside the namespace at path and fails the test with f's error.
func Do(tb testing.TB, path string, f func() error) {
	tb.Helper()
	if err := Try(tb, path, f); err != nil {
		tb.Fatal(err)
	}
}

// Try runs f inside the namespace at path and returns f's error.
func Try(tb testing.TB, path string, f func() error) error {
	tb.Helper()
	ns, err := netns.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	return ns.Do(f)
}
