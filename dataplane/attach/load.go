// SPDX-License-Identifier: Apache-2.0

// Package attach brings the programs of the data path into the kernel: it
// loads them with their constants, pins maps and links in a versioned
// directory, attaches programs to links, uplinks and the cgroup, and takes over
// on a restart what an earlier daemon attached. It is also the door to netlink
// for what the data path must know of interfaces, addresses and routes.
package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/bpf"
)

// layout is the version of the directory of pins. It changes when the meaning
// of a map changes in a way that older programs would misread.
const layout = "v1"

// Options are what the programs are loaded with.
type Options struct {
	// BPFFS is the directory that the versioned layout is made in.
	BPFFS string
	// Sizes maps a map's name to its number of entries; others keep their own.
	Sizes map[string]uint32
	// Constants maps the name of a variable of bpf/lib/config.h to its value.
	Constants map[string]any
}

// Kernel is the loaded data path.
type Kernel struct {
	bpf.DatapathObjects
	// Renewed are maps whose content was lost: an earlier daemon pinned them
	// with another layout.
	Renewed []string

	dir     string
	options Options
	// mu guards the programs: larger maps come with new ones. Who attaches
	// them reads.
	mu sync.RWMutex
}

// unpinned maps hold what a restart may forget.
var unpinned = map[string]bool{".rodata": true, ".bss": true, ".data": true, ".rodata.cst": true}

// Load loads programs and maps. Maps that are pinned already are taken over
// with what they hold.
func Load(o Options) (*Kernel, error) {
	dir := filepath.Join(o.BPFFS, layout)
	if err := ensureBPFFS(o.BPFFS); err != nil {
		return nil, err
	}
	for _, d := range []string{"maps", "links"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("make directory of pins: %w", err)
		}
	}
	// Kernels before 5.11 charge maps to the memlock limit.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise memlock limit: %w", err)
	}
	spec, err := bpf.LoadDatapath()
	if err != nil {
		return nil, err
	}
	k := &Kernel{dir: dir, options: o}
	if err := k.configure(spec, o, filepath.Join(dir, "maps")); err != nil {
		return nil, err
	}
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: filepath.Join(dir, "maps")}}
	if err := spec.LoadAndAssign(&k.DatapathObjects, opts); err != nil {
		return nil, fmt.Errorf("load data path: %w", err)
	}
	return k, nil
}

// configure sets constants, sizes and pinning before the load.
func (k *Kernel) configure(spec *ebpf.CollectionSpec, o Options, pins string) error {
	for name, value := range o.Constants {
		v, ok := spec.Variables[name]
		if !ok {
			return fmt.Errorf("no constant %s in the data path", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	for name, size := range o.Sizes {
		m, ok := spec.Maps[name]
		if !ok {
			return fmt.Errorf("no map %s in the data path", name)
		}
		m.MaxEntries = size
	}
	for name, m := range spec.Maps {
		if unpinned[name] {
			continue
		}
		m.Pinning = ebpf.PinByName
		same, err := adopt(m, filepath.Join(pins, name))
		if err != nil {
			return err
		}
		if !same {
			k.Renewed = append(k.Renewed, name)
		}
	}
	return nil
}

// adopt keeps a pinned map of another size: its content is worth more than the
// new size, which applies once the map is made anew. One of another layout
// cannot be used: its pin is removed, and the programs that are attached keep
// it until they are replaced.
func adopt(spec *ebpf.MapSpec, pin string) (same bool, err error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned map %s: %w", pin, err)
	}
	defer m.Close() //nolint:errcheck // only looked at
	if m.Type() == spec.Type && m.KeySize() == spec.KeySize && m.ValueSize() == spec.ValueSize {
		spec.MaxEntries = m.MaxEntries()
		return true, nil
	}
	if err := m.Unpin(); err != nil {
		return false, fmt.Errorf("remove pinned map %s of another layout: %w", pin, err)
	}
	return false, nil
}

// ensureBPFFS mounts a BPF file system on the parent of dir when dir is in none.
func ensureBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err == nil && isBPFFS(dir) {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("make mount point of bpffs: %w", err)
	}
	if !isBPFFS(parent) {
		if err := unix.Mount("bpf", parent, "bpf", 0, "mode=0700"); err != nil {
			return fmt.Errorf("mount bpffs on %s: %w", parent, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of pins: %w", err)
	}
	return nil
}

func isBPFFS(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.BPF_FS_MAGIC
}

func (k *Kernel) linkPin(name string) string { return filepath.Join(k.dir, "links", name) }
