// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

// TestStartCrun lets a container go as crun does, or has crun do it: a program of that name that notes its call.
func TestStartCrun(t *testing.T) {
	for name, tt := range map[string]struct {
		program string
		hooked  bool
		waits   bool // a process waits at the FIFO
		called  bool
		fails   bool
	}{
		"waiting": {program: "crun", waits: true},
		"dead":    {program: "crun", fails: true},
		"hooked":  {program: "crun", hooked: true, waits: true, called: true},
		"another": {program: "youki", waits: true, called: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			program, called := filepath.Join(dir, tt.program), filepath.Join(dir, "called")
			if err := os.WriteFile(program, []byte("#!/bin/sh\n: > "+called+"\n"), 0o700); err != nil { //nolint:gosec // it is run
				t.Fatal(err)
			}
			reaper := reap.New()
			go reaper.Run(t.Context())
			r := &Runtime{Binary: program, Root: dir, bundle: dir, reaper: reaper}
			fifo := filepath.Join(r.dir("id"), "exec.fifo")
			if err := os.Mkdir(r.dir("id"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			reader := -1
			if tt.waits {
				var err error
				if reader, err = unix.Open(fifo, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = unix.Close(reader) }()
			}
			if err := r.Start(t.Context(), "id", tt.hooked, nil); (err != nil) != tt.fails {
				t.Fatal(err)
			}
			if _, err := os.Lstat(called); (err == nil) != tt.called {
				t.Errorf("the OCI runtime was called: %v", err == nil)
			}
			if tt.called || tt.fails {
				return
			}
			if n, err := unix.Read(reader, make([]byte, 2)); n != 1 || err != nil {
				t.Errorf("the container reads %d bytes, %v", n, err)
			}
			if _, err := os.Lstat(fifo); !absent(err) {
				t.Errorf("crun would take it for created: %v", err)
			}
		})
	}
}
