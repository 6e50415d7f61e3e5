// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const testImages = "registry.k8s.io/e2e-test-images/"

// conformanceImages stand in for those of Kubernetes' own tests: cmd/web is the sh of most, their
// nmeter and nginx, and their set-user-id program, and one test reads os-release.
func (c *Cluster) conformanceImages(ctx context.Context, applets map[string]string) ([]image, error) {
	links := maps.Clone(applets)
	delete(links, "bin/sh")
	delete(links, "bin/bash")
	texts := maps.Clone(accounts)
	texts["etc/passwd"] = strings.ReplaceAll(texts["etc/passwd"], "web:", "user-defined-in-image:")
	// No name for group 1000: tests of fsGroup look for the number.
	texts["etc/group"] = strings.ReplaceAll(texts["etc/group"], "web:x:1000:\n", "") + "group-defined-in-image:x:50000:user-defined-in-image\n"
	texts["etc/os-release"] = "NAME=\"Alpine Linux\"\nID=alpine\n"
	texts["www/index.html"] = "<title>Welcome to nginx!</title>\n"
	texts["var/run/keep"] = "\n"
	texts["data.json"] = "{\"image\": \"kitten.jpg\"}\n"
	web := filepath.Join(c.Bin, "web")
	base := map[string]string{"bin/busybox": busyboxPath, "bin/bash": "/bin/bash-static", "bin/sh": web}
	nnp := maps.Clone(base)
	nnp["nnp"] = web
	serve := []string{"/bin/httpd", "-f", "-p", "80", "-h", "/www"}
	agnhost, err := c.networkImages(ctx, base, links, texts)
	if err != nil {
		return nil, err
	}
	links["bin/nmeter"], links["bin/nginx"] = "sh", "sh"
	return append(agnhost, []image{
		{refs: []string{"registry.k8s.io/pause:3.10.2"}, files: map[string]string{"pause": c.tool("pause")}, entrypoint: []string{"/pause"}, user: "65535:65535"},
		{refs: []string{testImages + "busybox:1.37.0-2", testImages + "busybox:1.36.1-1"}, files: base, links: links, texts: texts, cmd: []string{"sh"}},
		{refs: []string{testImages + "kitten:1.8", testImages + "nautilus:1.8"}, files: base, links: links, texts: texts, cmd: serve},
		{refs: []string{testImages + "nginx:1.27.0-2", testImages + "nginx:1.28.0-2"}, files: base, links: links, texts: texts, cmd: []string{"/bin/nginx"}},
		{refs: []string{testImages + "regression-issue-74839:1.5"}, files: map[string]string{"server": c.tool("regression-issue-74839")}, entrypoint: []string{"/server"}},
		{refs: []string{testImages + "nonroot:1.5"}, files: base, links: links, texts: texts, entrypoint: []string{"id", "-u"}, user: "1234"},
		{refs: []string{testImages + "nonewprivs:1.4"}, files: nnp, links: links, texts: texts, setuid: []string{"nnp"}, entrypoint: []string{"/nnp"}, user: "1000"},
	}...), nil
}

// networkImages are those with the machine's own tools of the network, for busybox has no curl,
// dig or ipcs, its own nc and ip, and a wget that crashes with a timeout (Debian's 1.35, static).
func (c *Cluster) networkImages(ctx context.Context, base, links, texts map[string]string) ([]image, error) {
	files, links := maps.Clone(base), maps.Clone(links)
	files["bin/nmeter"] = files["bin/sh"]
	files["bin/sh"] = files["bin/bash"] // busybox's prefers its own nc
	for path, program := range map[string]string{
		"bin/curl": "/usr/bin/curl", "bin/nc": "/bin/nc.openbsd", "bin/ip": "/sbin/ip",
		"bin/dig": "/usr/bin/dig", "bin/getent": "/usr/bin/getent", "bin/wget": "/usr/bin/wget", "bin/ipcs": "/usr/bin/ipcs",
	} {
		delete(links, path)
		if err := dynamic(ctx, files, path, program); err != nil {
			return nil, err
		}
	}
	glibc := image{refs: []string{testImages + "glibc-dns-testing:2.1.1", testImages + "ipc-utils:1.4"}, files: maps.Clone(files), links: maps.Clone(links), texts: texts, cmd: []string{"sh"}}
	if err := c.pki.issue("localhost", "localhost", nil, []string{"localhost"}); err != nil {
		return nil, err
	}
	for _, f := range []string{"localhost.crt", "localhost.key"} { // agnhost's porter serves TLS with them
		files[f] = c.pki.path(f)
	}
	files["agnhost"], files["coredns"], links["agnhost-2"] = c.tool("agnhost"), c.tool("coredns"), "agnhost"
	agnhost := image{refs: []string{AgnhostImage, testImages + "agnhost:2.55"}, files: files, links: links, texts: texts, entrypoint: []string{"/agnhost"}, cmd: []string{"pause"}}
	return []image{glibc, agnhost}, nil
}

// dynamic adds a program of the machine to an image, with the libraries that it is linked with.
func dynamic(ctx context.Context, files map[string]string, path, program string) error {
	out, err := exec.CommandContext(ctx, "ldd", program).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	files[path] = program
	for line := range strings.Lines(string(out)) {
		for field := range strings.FieldsSeq(line) {
			if !strings.HasPrefix(field, "/") {
				continue
			}
			file, err := filepath.EvalSymlinks(field)
			if err != nil {
				return err
			}
			files[strings.TrimPrefix(field, "/")] = file
		}
	}
	return nil
}

// ConformanceRun says which of Kubernetes' own tests to run.
type ConformanceRun struct {
	// Focus and Skip are regular expressions on the tests' names.
	Focus, Skip string
	// Procs is how many run at once.
	Procs int
	// Report is a directory for the JUnit report.
	Report string
	// Drivers are descriptions of storage drivers, files in cluster/../drivers: the tests
	// are run once with each. None: once without.
	Drivers []string
}

// RunConformance runs Kubernetes' own tests beside the control plane, from where they reach
// nodes and pods, and writes what they say to out.
func (c *Cluster) RunConformance(ctx context.Context, r ConformanceRun, out io.Writer) error {
	if len(r.Drivers) > 0 {
		return c.testDrivers(ctx, r, out)
	}
	return c.runConformance(ctx, r, out)
}

// runConformance is RunConformance with further flags of e2e.test.
func (c *Cluster) runConformance(ctx context.Context, r ConformanceRun, out io.Writer, flags ...string) error {
	for _, p := range []string{"ginkgo", "e2e.test"} {
		if _, err := os.Stat(c.tool(p)); err != nil {
			return fmt.Errorf("%w (make deps ONLY='ginkgo e2e.test regression-issue-74839')", err)
		}
	}
	inside, err := c.pki.kubeconfig("admin-inside", controlURL, "admin", "system:masters")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.Report, 0o755); err != nil {
		return err
	}
	cmd := c.Control.Command(ctx, c.tool("ginkgo"), fmt.Sprintf("--procs=%d", max(1, r.Procs)), "--no-color", "--silence-skips",
		"--timeout=2h", "--focus="+r.Focus, "--skip="+r.Skip, c.tool("e2e.test"), "--",
		"--provider=local", "--kubeconfig="+inside, "--report-dir="+r.Report, "--minStartupPods=0",
		"--dump-logs-on-failure=false", "--disable-log-dump=true")
	cmd.Args = append(cmd.Args, flags...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+inside, "TMPDIR="+c.dir, "HOME="+c.dir,
		"PATH="+c.Tools+":"+os.Getenv("PATH"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.Report, out, out
	if err := c.Control.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(errors.New("some of the tests failed, see "+r.Report), err)
	}
	return nil
}
