// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Filter is a compiled seccomp filter, kept in a file for all containers with the same profile under the same OCI runtime.
//
// It is not compiled here: the first container of a profile is looked at when its first process has been made by the OCI
// runtime and has not yet run (Capture). So it is the very filter that runc's libseccomp compiles, known only to the kernel otherwise.
type Filter struct {
	path string
	// listed says that the profile names its flags.
	listed bool
	flags  uint64
}

// The flags of seccomp(2) that a profile may ask for here.
const (
	flagLog       = unix.SECCOMP_FILTER_FLAG_LOG
	flagSpecAllow = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
)

// findFilter reads a profile; nil when there is none.
func findFilter(profile json.RawMessage, runtime, dir string) (*Filter, error) {
	if len(profile) == 0 || string(profile) == "null" {
		return nil, nil //nolint:nilnil // no filter is a valid answer
	}
	var s seccomp
	if err := json.Unmarshal(profile, &s); err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	if s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return nil, nil //nolint:nilnil // runc takes it for none
	}
	if s.ListenerPath != "" || slices.ContainsFunc(s.Syscalls, func(c struct{ Action string }) bool { return c.Action == "SCMP_ACT_NOTIFY" }) {
		return nil, unable("seccomp profile with a listener")
	}
	f := &Filter{listed: s.Flags != nil}
	for _, name := range s.Flags {
		switch name {
		case "SECCOMP_FILTER_FLAG_TSYNC": // runc has no use for it either
		case "SECCOMP_FILTER_FLAG_LOG":
			f.flags |= flagLog
		case "SECCOMP_FILTER_FLAG_SPEC_ALLOW":
			f.flags |= flagSpecAllow
		default:
			return nil, unable("seccomp flag %s", name)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(runtime, &st); err != nil {
		return nil, fmt.Errorf("look at OCI runtime: %w", err)
	}
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "1\n%s\n%d %d %d %d\n", runtime, st.Dev, st.Ino, st.Size, st.Mtim.Nano()) // a hash takes all
	_, _ = h.Write(profile)
	f.path = filepath.Join(dir, fmt.Sprintf("%x", h.Sum(nil)))
	return f, nil
}

// Known says whether the filter has been captured.
func (f *Filter) Known() bool {
	_, err := os.Stat(f.path)
	return err == nil
}

// load returns the filter and the flags it is loaded with.
func (f *Filter) load() ([]byte, uint64, error) {
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return nil, 0, unable("%w", err)
	}
	const instruction, most = 8, 4096
	if len(raw) < 8+instruction || len(raw)%instruction != 0 || len(raw) > 8+most*instruction {
		return nil, 0, unable("filter of %d bytes", len(raw))
	}
	flags := f.flags
	if !f.listed {
		flags = binary.NativeEndian.Uint64(raw)
	}
	return raw[8:], flags, nil
}

// save writes a captured filter, wholly or not at all. defaults are the flags of a profile that names none.
func save(path string, program []byte, defaults uint64) (retErr error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep filter: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "new-*")
	if err != nil {
		return fmt.Errorf("keep filter: %w", err)
	}
	defer func() {
		if retErr != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(binary.NativeEndian.AppendUint64(nil, defaults), program...))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("keep filter: %w", err)
	}
	return nil
}
