// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/bpf"
)

// An upgrade replaces programs whose maps have another layout than ours, or are
// smaller than we want, while packets pass.
//
// The new maps wait in a directory beside the old ones. Relays are put on all
// links, which lead to the old programs; one write then leads all of them to new
// ones, so no packet meets both tables. From then on the old table of flows
// only shrinks in importance: what the new programs do not find in theirs they
// take from it, and we carry over the rest. At last the pins are moved, which
// is when an earlier daemon, or the next, sees the new maps in the old place.
//
// A crash before the write leaves relays that lead to the old programs, and the
// next start begins anew; one after it leaves everything working, and the next
// start completes it (resume).
type upgrade struct {
	k       *Kernel
	spec    *ebpf.CollectionSpec
	changes []*change
	stage   *ebpf.Map
	relays  *ebpf.Map
	objs    bpf.DatapathObjects
}

// Directories and pins of an upgrade, below that of the layout.
const (
	nextDir   = "next"   // …, next-1: what earlier attempts left on links
	nextMaps  = "maps"   // in nextDir: the new maps
	nextStage = "stage"  // in nextDir: who is in charge
	nextRelay = "relays" // in nextDir: keeps the programs that relays lead to
)

// upgrade brings what the changed maps hold into new ones, and puts programs
// that work with them in charge.
func (k *Kernel) upgrade(spec *ebpf.CollectionSpec, changes []*change, on func(step string)) (retErr error) {
	u := &upgrade{k: k, spec: spec, changes: changes}
	defer func() { retErr = errors.Join(retErr, u.close()) }()
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"make maps", u.makeMaps},
		{"load programs", u.load},
		{"put relays on links", u.putRelays},
		{"turn relays", u.turn},
		{"carry over", u.carry},
		{"move pins", u.movePins},
	} {
		if on != nil {
			on(s.name)
		}
		if err := s.do(); err != nil {
			return fmt.Errorf("upgrade of maps: %s: %w", s.name, err)
		}
	}
	return nil
}

func (u *upgrade) close() error {
	errs := []error{u.objs.Close()}
	for _, m := range []*ebpf.Map{u.stage, u.relays} {
		errs = append(errs, m.Close())
	}
	for _, c := range u.changes {
		errs = append(errs, c.old.Close(), c.new.Close())
	}
	return errors.Join(errs...)
}

func (u *upgrade) path(elem ...string) string {
	return filepath.Join(append([]string{u.k.dir, nextDir}, elem...)...)
}

// makeMaps fills the new maps, but for the flows: the old programs go on
// recording those.
func (u *upgrade) makeMaps() (err error) {
	if err := os.MkdirAll(u.path(nextMaps), 0o700); err != nil {
		return err
	}
	if u.stage, err = u.newPinned("stage", nextStage); err != nil {
		return err
	}
	if u.relays, err = u.newPinned("relays", nextRelay); err != nil {
		return err
	}
	for _, c := range u.changes {
		if c.new, err = u.newPinned(c.name, nextMaps, c.name); err != nil {
			return err
		}
		if c.lost {
			u.k.Renewed = append(u.k.Renewed, c.name)
			continue
		}
		u.k.Converted = append(u.k.Converted, c.name)
		if c.name == flowMap {
			continue
		}
		if err := c.copy(); err != nil {
			return err
		}
	}
	return nil
}

// newPinned makes a map of our layout, in place of what an attempt left there.
func (u *upgrade) newPinned(name string, pin ...string) (*ebpf.Map, error) {
	spec := u.spec.Maps[name].Copy()
	spec.Pinning = ebpf.PinNone
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	path := u.path(pin...)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, m.Close())
	}
	if err := m.Pin(path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin map %s: %w", name, err), m.Close())
	}
	return m, nil
}

// load loads our programs with the new maps, and with an eye on the old flows.
func (u *upgrade) load() error {
	spec := u.spec.Copy()
	maps := map[string]*ebpf.Map{"stage": u.stage, "relays": u.relays}
	for _, c := range u.changes {
		maps[c.name] = c.new
		if c.name != flowMap || c.lost {
			continue
		}
		maps["ct_before"] = c.old
		m := spec.Maps["ct_before"]
		m.Type, m.KeySize, m.ValueSize = c.old.Type(), c.old.KeySize(), c.old.ValueSize()
		m.MaxEntries, m.Flags = c.old.MaxEntries(), c.old.Flags()
		if err := c.recall(spec); err != nil {
			return err
		}
	}
	for name := range maps {
		spec.Maps[name].Pinning = ebpf.PinNone
	}
	err := spec.LoadAndAssign(&u.objs, &ebpf.CollectionOptions{
		Maps:            ebpf.MapOptions{PinPath: filepath.Join(u.k.dir, "maps")},
		MapReplacements: maps,
	})
	if err != nil {
		return fmt.Errorf("load data path: %w", err)
	}
	return nil
}

// putRelays leads every link to the program that it has already. Nothing changes yet.
func (u *upgrade) putRelays() error {
	ours, relays := programs(&u.objs), relaysOf(&u.objs)
	for hook, p := range ours {
		if err := u.relays.Put(uint32(bpf.DatapathHookHOOK_MAX)+uint32(hook), p); err != nil {
			return fmt.Errorf("set relay of hook %d: %w", hook, err)
		}
	}
	attached, err := u.k.attachments()
	if err != nil {
		return err
	}
	defer closeAll(attached)
	for _, a := range attached {
		if err := u.relays.Put(uint32(a.hook), a.prog); err != nil {
			return fmt.Errorf("keep program of hook %d: %w", a.hook, err)
		}
	}
	for _, a := range attached {
		if err := a.replace(relays[a.hook]); err != nil {
			return err
		}
	}
	return u.k.idleXDP(u.objs.XdpIdle)
}

// turn puts the new programs in charge, all at once, and waits until no old one
// is still at work on a packet.
func (u *upgrade) turn() error {
	if err := u.stage.Put(uint32(0), uint32(1)); err != nil {
		return fmt.Errorf("turn to new programs: %w", err)
	}
	const membarrierGlobal = 1
	// Kernels that cannot wait so (nohz_full) have had the time of a system call.
	unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0) //nolint:errcheck // see above
	return nil
}

// carry takes over what old programs recorded until the turn.
func (u *upgrade) carry() error {
	for _, c := range u.changes {
		if c.lost || !c.recorded() {
			continue
		}
		if err := c.copy(); err != nil {
			return err
		}
	}
	return nil
}

func (u *upgrade) movePins() error {
	for _, c := range u.changes {
		if err := os.Rename(u.path(nextMaps, c.name), filepath.Join(u.k.dir, "maps", c.name)); err != nil {
			return err
		}
	}
	return nil
}
