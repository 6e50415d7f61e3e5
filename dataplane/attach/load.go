// SPDX-License-Identifier: Apache-2.0

// Package attach brings the programs of the data path into the kernel: it
// loads them with their constants, pins maps and links in a versioned
// directory, attaches programs to links, uplinks and the cgroup, and takes over
// on a restart what an earlier daemon attached. It is also the door to netlink
// for what the data path must know of interfaces, addresses and routes.
package attach

import (
	"fmt"
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
	// Object returns the programs; nil: those that are built in.
	Object func() (*ebpf.CollectionSpec, error)
	// OnStep is called before each step of an upgrade of maps; nil: nobody asks.
	OnStep func(step string)
}

// Kernel is the loaded data path.
type Kernel struct {
	bpf.DatapathObjects
	// Converted are maps that an earlier daemon pinned with another layout, or
	// another size, and whose content was carried over. Renewed are those whose
	// content could not be.
	Converted, Renewed []string

	dir     string
	options Options
	// mu guards the programs: larger maps come with new ones. Who attaches
	// them reads.
	mu sync.RWMutex
}

// unpinned maps hold what a restart may forget.
var unpinned = map[string]bool{
	".rodata": true, ".bss": true, ".data": true, ".rodata.cst": true,
	"stage": true, "relays": true, "ct_before": true, "recall_bufs": true,
}

// Load loads programs and maps. Maps that are pinned already are taken over
// with what they hold; when the layout of one has changed, packets are led to
// new programs and maps before it returns. Settle ends what it begins.
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
	if o.Object == nil {
		o.Object = bpf.LoadDatapath
	}
	spec, err := o.Object()
	if err != nil {
		return nil, fmt.Errorf("read data path: %w", err)
	}
	if err := configure(spec, o); err != nil {
		return nil, err
	}
	k := &Kernel{dir: dir, options: o}
	if err := k.resume(); err != nil {
		return nil, err
	}
	changes, err := k.compare(spec)
	if err != nil {
		return nil, err
	}
	if len(changes) > 0 {
		if err := k.upgrade(spec, changes, o.OnStep); err != nil {
			return nil, err
		}
	}
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: filepath.Join(dir, "maps")}}
	if err := spec.LoadAndAssign(&k.DatapathObjects, opts); err != nil {
		return nil, fmt.Errorf("load data path: %w", err)
	}
	return k, nil
}

// configure sets constants and sizes before the load.
func configure(spec *ebpf.CollectionSpec, o Options) error {
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
	return nil
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
