// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// detach starts the same command as a daemon and follows what it says until the
// cluster is up.
func detach(ctx context.Context, args []string, o *options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--detach" || a == "-detach" })
	log := logPath(o)
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command(self, argv...) //nolint:noctx // goes on after this process
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	r, err := os.Open(log)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := follow(ctx, bufio.NewReader(r), ended, o); err != nil {
		return errors.Join(err, cmd.Process.Signal(unix.SIGTERM))
	}
	fmt.Fprintln(os.Stderr, "Its log is", log)
	return nil
}

// logPath is the log of a detached owner; down removes it.
func logPath(o *options) string {
	return filepath.Join(os.TempDir(), "nodeagent-cluster-"+o.Name+".log")
}

func follow(ctx context.Context, r *bufio.Reader, ended <-chan error, o *options) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		info, err := cluster.Find(o.Base, o.Name)
		ready := err == nil && info.Ready && info.Alive
		if _, err := io.Copy(os.Stderr, r); err != nil || ready {
			return err
		}
		select {
		case err := <-ended:
			_, _ = io.Copy(os.Stderr, r)
			return fmt.Errorf("the cluster did not come up: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// enter becomes a command in a node.
func enter(_ context.Context, o *options) error {
	info, err := cluster.Find(o.Base, o.Name)
	if err != nil {
		return fmt.Errorf("cluster %s: %w", o.Name, err)
	}
	if len(o.args) == 0 || info.Boxes[o.args[0]] == 0 {
		return fmt.Errorf("name one of the boxes %v", info.Boxes)
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	if err := info.JoinNode(o.args[0]); err != nil {
		return err
	}
	argv := []string{"nsenter", "-t", strconv.Itoa(info.Boxes[o.args[0]]), "-m", "-n", "-u", "-i", "-p", "--"}
	command := o.args[1:]
	if len(command) == 0 {
		command = []string{"/bin/bash"}
	}
	env := append(os.Environ(), "PATH="+o.Bin+":"+o.Tools+":"+os.Getenv("PATH"), "KUBECONFIG=/etc/nodeagent/kubeconfig")
	return unix.Exec(nsenter, append(argv, command...), env)
}

func down(ctx context.Context, o *options) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 4*time.Minute, errors.New("gave up after 4 minutes"))
	defer cancel()
	p := cluster.NewProgress(os.Stderr)
	if err := p.Step("stop cluster "+o.Name, func() error { return cluster.Stop(ctx, o.Base, o.Name) }); err != nil {
		return fmt.Errorf("%w (its log is %s)", err, logPath(o))
	}
	if err := os.Remove(logPath(o)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
