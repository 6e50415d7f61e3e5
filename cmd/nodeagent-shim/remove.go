// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/task"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// killed is the status of a container whose shim could not tell it: 128 + SIGKILL.
const killed = 137

// remove cleans up after a shim that has gone: it ends the container, removes what is left of it, and prints how it ended. Its
// working directory is the bundle.
func remove(ctx context.Context, f flags) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reaper := reap.New()
	go reaper.Run(ctx)
	bundle := f.bundle
	if bundle == "" {
		wd, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find bundle: %w", err)
		}
		bundle = filepath.Join(filepath.Dir(wd), f.id)
	}
	exit := task.Exit{Exit: reap.Exit{Status: killed, At: time.Now()}}
	rt, err := oci.Load(reaper, bundle)
	switch {
	case err == nil:
		err = rt.Delete(ctx, f.id, true)
	case errors.Is(err, os.ErrNotExist):
		err = nil // it was never created
	}
	if recorded, rerr := task.LoadExit(bundle); rerr == nil {
		exit = recorded
	}
	if uerr := oci.RemoveRoot(filepath.Join(bundle, "rootfs")); uerr != nil || err != nil {
		// containerd logs it and goes on; the record of the end is worth more than a failure.
		fmt.Fprintln(os.Stderr, errors.Join(err, uerr))
	}
	removeSocket(ctx, bundle)
	var m wire.Message
	m.Uint(1, uint64(exit.PID)) //nolint:gosec // process numbers are positive
	m.Uint(2, uint64(exit.Status))
	m.Time(3, exit.At)
	_, err = os.Stdout.Write(m)
	return err
}

// removeSocket removes the socket of the bundle's shim when nobody listens on it any more.
func removeSocket(ctx context.Context, bundle string) {
	path, err := os.ReadFile(filepath.Join(bundle, socketRecord))
	if err != nil {
		return
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", string(path))
	if err == nil {
		_ = conn.Close() // it lives, for other containers of the pod
		return
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		_ = os.Remove(string(path))
	}
}

// featuresType is the name under which containerd knows the OCI runtime's features.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// printInfo tells containerd what the OCI runtime that the options on stdin name supports.
func printInfo(ctx context.Context) error {
	raw, err := io.ReadAll(io.LimitReader(os.Stdin, maxParams))
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	options, err := (wire.Value{Bytes: raw}).Any()
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	rt, err := task.RuntimeOf(options)
	if err != nil {
		return fmt.Errorf("read options: %w", err)
	}
	if rt.Binary == "" {
		rt.Binary = oci.DefaultBinary
	}
	var m, v wire.Message
	m.String(1, runtimeName)
	v.String(1, version)
	m.Bytes(2, v)
	if options.Type != "" {
		m.Any(3, options)
	}
	// Not all OCI runtimes know the command; then nothing is known of them.
	if features, err := exec.CommandContext(ctx, rt.Binary, "features").Output(); err == nil {
		m.Any(4, wire.Any{Type: featuresType, Value: features})
	}
	_, err = os.Stdout.Write(m)
	return err
}
