// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// grownBatch is how many entries one system call copies.
const grownBatch = 4096

// Grow replaces maps by larger ones with the same content, and the programs by
// ones that use them. Nothing is attached yet: the caller does that, link by
// link, with the verbs that attach, and meanwhile nobody may write to these
// maps. Until then packets meet the programs and maps from before.
//
// The second result closes what was replaced; it is called when the caller is done.
func (k *Kernel) Grow(sizes map[string]uint32) (done func() error, retErr error) {
	pins := filepath.Join(k.dir, "maps")
	spec, err := k.specOfPins()
	if err != nil {
		return nil, err
	}
	fresh := map[string]*ebpf.Map{}
	defer func() {
		if retErr != nil {
			for _, m := range fresh {
				retErr = errors.Join(retErr, m.Close())
			}
		}
	}()
	for name, size := range sizes {
		m := spec.Maps[name]
		m.MaxEntries = size
		m.Pinning = ebpf.PinNone
		if fresh[name], err = ebpf.NewMap(m); err != nil {
			return nil, fmt.Errorf("make map %s of %d entries: %w", name, size, err)
		}
		if err := k.copyTo(name, fresh[name]); err != nil {
			return nil, fmt.Errorf("copy map %s: %w", name, err)
		}
	}
	var objs bpf.DatapathObjects
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}, MapReplacements: fresh}
	if err := spec.LoadAndAssign(&objs, opts); err != nil {
		return nil, fmt.Errorf("load data path with larger maps: %w", err)
	}
	for name, m := range fresh {
		if err := movePin(m, filepath.Join(pins, name)); err != nil {
			return nil, errors.Join(err, objs.Close())
		}
	}
	old := k.swap(objs, fresh)
	return func() error {
		var errs []error
		for _, c := range old {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}, nil
}

// specOfPins are programs for the maps that are pinned.
func (k *Kernel) specOfPins() (*ebpf.CollectionSpec, error) {
	spec, err := k.options.Object()
	if err != nil {
		return nil, fmt.Errorf("read data path: %w", err)
	}
	if err := configure(spec, k.options); err != nil {
		return nil, err
	}
	changes, err := k.compare(spec)
	for _, c := range changes {
		err = errors.Join(err, fmt.Errorf("map %s is not as it was loaded", c.name), c.old.Close())
	}
	return spec, err
}

// swap takes programs, variables and the fresh maps over, and returns what
// closes those from before. The other maps stay open as they are: others use them.
func (k *Kernel) swap(objs bpf.DatapathObjects, fresh map[string]*ebpf.Map) []func() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.DatapathPrograms
	old := []func() error{was.Close, objs.DatapathMaps.Close}
	k.DatapathPrograms, k.DatapathVariables = objs.DatapathPrograms, objs.DatapathVariables
	for name, m := range fresh {
		at := k.mapOf(name)
		old = append(old, (*at).Close)
		*at = m
	}
	return old
}

// mapOf is where the handle of a map that can grow is kept.
func (k *Kernel) mapOf(name string) **ebpf.Map {
	switch name {
	case "svc":
		return &k.Svc
	case "be":
		return &k.Be
	default:
		return &k.Aff
	}
}

// movePin puts a map in the place of the one that is pinned there.
func movePin(m *ebpf.Map, pin string) error {
	tmp := pin + "-new" // this file system has no names with dots
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := m.Pin(tmp); err != nil {
		return fmt.Errorf("pin larger map: %w", err)
	}
	if err := os.Rename(tmp, pin); err != nil {
		return fmt.Errorf("pin larger map: %w", err)
	}
	return nil
}

// copyTo copies what a map that can grow holds.
func (k *Kernel) copyTo(name string, to *ebpf.Map) error {
	from := *k.mapOf(name)
	switch name {
	case "svc":
		return copyMap[bpf.DatapathSvcKey, bpf.DatapathSvcValue](to, from)
	case "be":
		return copyMap[uint32, bpf.DatapathBackend](to, from)
	default:
		return copyMap[bpf.DatapathAffKey, bpf.DatapathAffValue](to, from)
	}
}

func copyMap[K, V any](to, from *ebpf.Map) error {
	keys, values := make([]K, grownBatch), make([]V, grownBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := from.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		if n > 0 {
			if _, err := to.BatchUpdate(keys[:n], values[:n], nil); err != nil {
				return err
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // that was the last of them
		}
	}
}
