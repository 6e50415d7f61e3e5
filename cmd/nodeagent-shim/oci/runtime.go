// SPDX-License-Identifier: Apache-2.0

// Package oci calls an OCI runtime (runc, crun, ...) through its command line, and does without a call where the runtime's state
// on disk allows the same in this process.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

// DefaultRoot is where containerd's own shim keeps the state of OCI runtimes, one directory for each namespace.
const DefaultRoot = "/run/containerd/runc"

// Runtime is the OCI runtime of one bundle. It is kept beside the bundle, so that whoever cleans up after a dead shim calls
// the same one.
type Runtime struct {
	Binary  string `json:"binary"`
	Root    string `json:"root"`
	Systemd bool   `json:"systemd,omitempty"`
	// NoPivot and NoKeyring are runc options for initramfs hosts.
	NoPivot   bool `json:"noPivot,omitempty"`
	NoKeyring bool `json:"noKeyring,omitempty"`

	reaper *reap.Reaper
	bundle string
}

// DefaultBinary is the OCI runtime when the options name none.
const DefaultBinary = "runc"

const recordName = "nodeagent-shim.json"

// Bind completes a Runtime: defaults, the program's path, and where it works.
func (r *Runtime) Bind(reaper *reap.Reaper, namespace, bundle string) error {
	if r.Binary == "" {
		r.Binary = DefaultBinary
	}
	if r.Root == "" {
		r.Root = DefaultRoot
	}
	path, err := exec.LookPath(r.Binary)
	if err != nil {
		return fmt.Errorf("OCI runtime: %w", err)
	}
	r.Binary = path
	r.Root = filepath.Join(r.Root, namespace)
	r.reaper, r.bundle = reaper, bundle
	return nil
}

// Save records a bound Runtime in its bundle.
func (r *Runtime) Save() error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record OCI runtime: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.bundle, recordName), raw, 0o600); err != nil {
		return fmt.Errorf("record OCI runtime: %w", err)
	}
	return nil
}

// Load returns the Runtime that was saved in a bundle.
func Load(reaper *reap.Reaper, bundle string) (*Runtime, error) {
	raw, err := os.ReadFile(filepath.Join(bundle, recordName))
	if err != nil {
		return nil, fmt.Errorf("read OCI runtime: %w", err)
	}
	r := &Runtime{reaper: reaper, bundle: bundle}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("read OCI runtime: %w", err)
	}
	return r, nil
}

// Stdio are the descriptors that a container's or an exec's process inherits.
type Stdio [3]*os.File

// Launch says how a process is made.
type Launch struct {
	// PidFile gets its number; Console is the socket that gets its terminal, relative to the bundle, empty without one.
	PidFile, Console string
	Stdio            Stdio
}

// Create makes a container whose first process waits for Start.
func (r *Runtime) Create(ctx context.Context, id string, l Launch) error {
	args := append([]string{"create", "--bundle", r.bundle}, l.args()...)
	if r.NoPivot {
		args = append(args, "--no-pivot")
	}
	if r.NoKeyring {
		args = append(args, "--no-new-keyring")
	}
	return r.call(ctx, "create", l.Stdio, append(args, id)...)
}

// Exec makes another process in a container and lets it run; spec is its JSON.
func (r *Runtime) Exec(ctx context.Context, id string, spec []byte, l Launch) error {
	f, err := os.CreateTemp(r.bundle, "exec-*.json")
	if err != nil {
		return fmt.Errorf("write process: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(spec)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write process: %w", err)
	}
	args := append([]string{"exec", "--process", f.Name(), "--detach"}, l.args()...)
	return r.call(ctx, "exec", l.Stdio, append(args, id)...)
}

func (l Launch) args() []string {
	args := []string{"--pid-file", l.PidFile}
	if l.Console != "" {
		args = append(args, "--console-socket", l.Console)
	}
	return args
}

// KillAll kills everything in the container's cgroup, for containers that share a PID namespace.
func (r *Runtime) KillAll(ctx context.Context, id string) error {
	return r.quiet(ctx, "kill", "--all", id, "9")
}

// Pause and Resume freeze and thaw a container.
func (r *Runtime) Pause(ctx context.Context, id string) error { return r.quiet(ctx, "pause", id) }

// Resume thaws a container.
func (r *Runtime) Resume(ctx context.Context, id string) error { return r.quiet(ctx, "resume", id) }

// Update changes a container's limits; resources is the JSON of the spec's resources.
func (r *Runtime) Update(ctx context.Context, id string, resources []byte) error {
	f, err := os.CreateTemp(r.bundle, "update-*.json")
	if err != nil {
		return fmt.Errorf("write resources: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.Write(resources)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write resources: %w", err)
	}
	return r.quiet(ctx, "update", "--resources", f.Name(), id)
}

// Checkpoint is a dump or a restore by CRIU.
type Checkpoint struct {
	ImagePath, WorkPath, ParentPath, CgroupsMode    string
	Exit, OpenTCP, UnixSockets, Terminal, FileLocks bool
	EmptyNamespaces                                 []string
}

func (c Checkpoint) args() []string {
	args := []string{"--image-path", c.ImagePath}
	for _, o := range []struct{ flag, value string }{
		{"--work-path", c.WorkPath}, {"--parent-path", c.ParentPath}, {"--manage-cgroups-mode", c.CgroupsMode},
	} {
		if o.value != "" {
			args = append(args, o.flag, o.value)
		}
	}
	for _, o := range []struct {
		flag string
		set  bool
	}{{"--tcp-established", c.OpenTCP}, {"--ext-unix-sk", c.UnixSockets}, {"--shell-job", c.Terminal}, {"--file-locks", c.FileLocks}} {
		if o.set {
			args = append(args, o.flag)
		}
	}
	for _, ns := range c.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return args
}

// Dump writes a container's state to c.ImagePath.
func (r *Runtime) Dump(ctx context.Context, id string, c Checkpoint) error {
	args := append([]string{"checkpoint"}, c.args()...)
	if !c.Exit {
		args = append(args, "--leave-running")
	}
	return r.quiet(ctx, append(args, id)...)
}

// Restore makes and starts a container from a dump.
func (r *Runtime) Restore(ctx context.Context, id string, c Checkpoint, l Launch) error {
	args := append([]string{"restore", "--detach", "--bundle", r.bundle}, c.args()...)
	args = append(args, l.args()...)
	return r.call(ctx, "restore", l.Stdio, append(args, id)...)
}

// Pids lists the processes of a container.
func (r *Runtime) Pids(ctx context.Context, id string) ([]int, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer func() { _ = read.Close() }()
	var out bytes.Buffer
	copied := make(chan error, 1)
	go func() {
		_, err := out.ReadFrom(read)
		copied <- err
	}()
	err = r.call(ctx, "ps", Stdio{nil, write, nil}, "ps", "--format", "json", id)
	if err := errors.Join(err, write.Close(), <-copied); err != nil {
		return nil, err
	}
	var pids []int
	if err := json.Unmarshal(out.Bytes(), &pids); err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return pids, nil
}

// quiet calls the runtime without streams.
func (r *Runtime) quiet(ctx context.Context, args ...string) error {
	return r.call(ctx, args[0], Stdio{}, args...)
}

// call runs the OCI runtime. Its error is the last one in its log, which says more than its exit code.
func (r *Runtime) call(ctx context.Context, verb string, stdio Stdio, args ...string) error {
	log, err := os.CreateTemp(r.bundle, "log-*.json")
	if err != nil {
		return fmt.Errorf("make log of OCI runtime: %w", err)
	}
	defer func() { _ = log.Close(); _ = os.Remove(log.Name()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	files := make([]uintptr, len(stdio))
	for i, f := range stdio {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	all := []string{r.Binary, "--root", r.Root, "--log", log.Name(), "--log-format", "json"}
	if r.Systemd {
		all = append(all, "--systemd-cgroup")
	}
	exit, err := r.reaper.Do(ctx, reap.Command{Path: r.Binary, Args: append(all, args...), Dir: r.bundle, Files: files})
	if err != nil {
		return fmt.Errorf("OCI runtime %s: %w", verb, err)
	}
	if exit.Status == 0 {
		return nil
	}
	if text := lastError(log); text != "" {
		return fmt.Errorf("OCI runtime %s failed: %s", verb, text)
	}
	return fmt.Errorf("OCI runtime %s failed: exit status %d", verb, exit.Status)
}

// lastError is the last message at level error in a log of JSON lines, or its last line when it is not JSON.
func lastError(log *os.File) string {
	raw, err := os.ReadFile(log.Name())
	if err != nil {
		return ""
	}
	var last string
	for line := range bytes.Lines(raw) {
		var entry struct{ Level, Msg string }
		switch {
		case json.Unmarshal(line, &entry) != nil:
			last = string(bytes.TrimSpace(line))
		case entry.Level == "error" || entry.Level == "fatal":
			last = entry.Msg
		}
	}
	return last
}

// ReadPid reads a pid file.
func ReadPid(file string) (int, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("pid file %s: %q is not a process", file, raw)
	}
	return pid, nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
