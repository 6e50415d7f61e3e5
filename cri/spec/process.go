// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process sets what is executed: arguments, environment, directory, terminal, limits.
func (b *builder) process() {
	p := b.spec.Process
	p.Args = b.args()
	p.Env = b.env()
	p.Cwd = b.cwd()
	p.Terminal = b.in.Config.GetTty()
	p.NoNewPrivileges = b.security().GetNoNewPrivs()
	for _, limit := range b.in.Policy.Rlimits {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == limit.Type })
		p.Rlimits = append(p.Rlimits, limit)
	}
	p.User.Umask = b.in.Policy.Umask
	b.spec.Root.Readonly = b.security().GetReadonlyRootfs()
	if b.in.Config.GetStdinOnce() && !b.in.Config.GetStdin() {
		b.faults.invalid("stdin_once", "set without stdin")
	}
}

// args follows Docker: a command replaces the image's entrypoint and its cmd, args alone replace the cmd only.
func (b *builder) args() []string {
	command, args := b.in.Config.GetCommand(), b.in.Config.GetArgs()
	if len(command) == 0 {
		if len(args) == 0 {
			args = b.in.Image.Config.Cmd
		}
		// An image resets an inherited entrypoint with [""].
		if e := b.in.Image.Config.Entrypoint; len(e) != 1 || e[0] != "" {
			command = e
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		b.faults.invalid("command", "no command in the container and none in its image")
	}
	for i, arg := range all {
		if strings.ContainsRune(arg, 0) {
			b.faults.invalid("command", "argument %d contains a NUL byte", i)
		}
	}
	return all
}

// env is the image's environment with the container's laid over it; the last entry of a name wins, in the place of the first.
func (b *builder) env() []string {
	hostname := b.in.Sandbox.Config.GetHostname()
	if hostname == "" {
		hostname = b.in.Host.Hostname
	}
	e := environment{index: map[string]int{}}
	e.add(defaultPath)
	if b.in.Config.GetTty() {
		e.add("TERM=xterm")
	}
	e.add("HOSTNAME=" + hostname)
	for _, entry := range slices.Concat(b.in.Policy.Env, b.spec.Process.Env, b.in.Image.Config.Env) {
		e.add(entry)
	}
	for i, kv := range b.in.Config.GetEnvs() {
		if problem := badName(kv.GetKey()); problem != "" {
			b.faults.invalid(fmt.Sprintf("envs[%d].key", i), "%q %s", kv.GetKey(), problem)
			continue
		}
		if slices.Contains(kv.GetValue(), 0) {
			b.faults.invalid(fmt.Sprintf("envs[%d].value", i), "contains a NUL byte")
			continue
		}
		e.add(kv.GetKey() + "=" + string(kv.GetValue()))
	}
	return e.entries
}

func badName(key string) string {
	switch {
	case key == "":
		return "is empty"
	case strings.Contains(key, "="):
		return "contains '='"
	case strings.ContainsRune(key, 0):
		return "contains a NUL byte"
	}
	return ""
}

type environment struct {
	entries []string
	index   map[string]int
}

func (e *environment) add(entry string) {
	name, _, _ := strings.Cut(entry, "=")
	if i, ok := e.index[name]; ok {
		e.entries[i] = entry
		return
	}
	e.index[name] = len(e.entries)
	e.entries = append(e.entries, entry)
}

func (b *builder) cwd() string {
	dir := b.in.Config.GetWorkingDir()
	if dir == "" {
		// A relative WORKDIR of an image is relative to its root.
		if dir = b.in.Image.Config.WorkingDir; dir == "" {
			return "/"
		}
		return path.Join("/", dir)
	}
	if !path.IsAbs(dir) {
		b.faults.invalid("working_dir", "%q is not an absolute path", dir)
	}
	return dir
}

// ExecProcess is the process of an exec in a container that was started from s: the same user, environment, directory and
// confinement, another command.
func ExecProcess(s *specs.Spec, command []string, tty bool) *specs.Process {
	p := *s.Process
	p.Args = slices.Clone(command)
	p.Env = slices.Clone(p.Env)
	p.Terminal = tty
	p.ConsoleSize = nil
	// An exec runs with the score of its container.
	if tty && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	return &p
}

// enumName reports whether v is a value that this version of the CRI knows.
func enumName(names map[int32]string, v int32) (string, bool) {
	name, ok := names[v]
	return name, ok
}

// modeName prints a namespace mode, known or not.
func modeName(m runtimeapi.NamespaceMode) string {
	if name, ok := enumName(runtimeapi.NamespaceMode_name, int32(m)); ok {
		return name
	}
	return fmt.Sprintf("%d", int32(m))
}
