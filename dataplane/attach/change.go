// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// flowMap is the table of flows: the one that programs write all the time, and
// must never miss anything in.
const flowMap = "ct"

// change is a pinned map that has to be replaced by another one.
type change struct {
	name       string
	old, new   *ebpf.Map
	from, to   shape
	key, value []move
	// lost: what it holds cannot be carried over.
	lost bool
}

// compare finds the pinned maps that are not as the programs want them. A map
// that is larger than wanted stays: its content may not fit in a smaller one.
func (k *Kernel) compare(spec *ebpf.CollectionSpec) (out []*change, retErr error) {
	defer func() {
		if retErr != nil {
			for _, c := range out {
				retErr = errors.Join(retErr, c.old.Close())
			}
			out = nil
		}
	}()
	for name, want := range spec.Maps {
		if unpinned[name] {
			continue
		}
		want.Pinning = ebpf.PinByName
		have, err := ebpf.LoadPinnedMap(filepath.Join(k.dir, "maps", name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("open pinned map %s: %w", name, err)
		}
		want.MaxEntries = max(want.MaxEntries, have.MaxEntries())
		c, err := newChange(name, have, want)
		if c != nil {
			out = append(out, c)
			continue
		}
		if err := errors.Join(err, have.Close()); err != nil {
			return out, err
		}
	}
	return out, nil
}

// newChange returns what is to be done to have the wanted map; nil for nothing.
func newChange(name string, have *ebpf.Map, want *ebpf.MapSpec) (*change, error) {
	same := have.Type() == want.Type && have.KeySize() == want.KeySize && have.ValueSize() == want.ValueSize &&
		have.MaxEntries() == want.MaxEntries && have.Flags() == want.Flags
	c := &change{name: name, old: have}
	if want.Key == nil || want.Value == nil {
		c.lost = true
		return only(c, !same), nil
	}
	var err error
	if c.to, err = shapeOf(want.Key, want.Value); err != nil {
		return nil, fmt.Errorf("layout of map %s: %w", name, err)
	}
	c.from, err = pinnedShape(have)
	if errors.Is(err, ebpf.ErrNotSupported) {
		c.lost = true
		return only(c, !same), nil
	}
	if err != nil {
		return nil, fmt.Errorf("layout of pinned map %s: %w", name, err)
	}
	c.key, c.value = moves(c.to.key, c.from.key), moves(c.to.value, c.from.value)
	c.lost = !copied(have.Type()) || !copied(want.Type) || (have.Type() == ebpf.Array) != (want.Type == ebpf.Array)
	return only(c, !same || !c.from.equal(c.to)), nil
}

func only(c *change, needed bool) *change {
	if !needed {
		return nil
	}
	return c
}

// copied are the kinds of maps that the agent can read and write whole. What
// others hold is renewed by itself: counters, events, the peers of sockets.
func copied(t ebpf.MapType) bool {
	return slices.Contains([]ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array, ebpf.LPMTrie}, t)
}

// recorded says whether programs write the map's entries.
func (c *change) recorded() bool { return c.name == flowMap || c.old.Type() == ebpf.LRUHash }

// copy carries over what is not in the new map yet.
func (c *change) copy() error {
	how := ebpf.UpdateNoExist
	if c.old.Type() == ebpf.Array {
		how = ebpf.UpdateAny
	}
	var key, value []byte
	it := c.old.Iterate()
	for it.Next(&key, &value) {
		if how == ebpf.UpdateAny && !slices.ContainsFunc(value, func(b byte) bool { return b != 0 }) {
			continue
		}
		err := c.new.Update(apply(c.key, c.new.KeySize(), key), apply(c.value, c.new.ValueSize(), value), how)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("carry over map %s: %w", c.name, err)
		}
	}
	// Entries that expire meanwhile end a walk early; the programs know the rest.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("read map %s: %w", c.name, err)
	}
	return nil
}

// recall tells the programs how flows were recorded before.
func (c *change) recall(spec *ebpf.CollectionSpec) error {
	for name, ms := range map[string][]move{
		bpf.DatapathVarCfgOldKey:   moves(c.from.key, c.to.key),
		bpf.DatapathVarCfgOldValue: c.value,
	} {
		v := spec.Variables[name]
		table, err := bytesOf(ms, int(v.Size()))
		if err == nil {
			err = v.Set(table)
		}
		if err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	return spec.Variables[bpf.DatapathVarCfgRecall].Set(true)
}
