// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// resume ends what an upgrade left behind that did not come to its end: once
// the relays had been turned it is completed, before that it never was. The
// relays that are still on links keep what they lead to until Settle.
func (k *Kernel) resume() error {
	next := filepath.Join(k.dir, nextDir)
	names, err := os.ReadDir(filepath.Join(next, nextMaps))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what an upgrade left: %w", err)
	}
	turned, err := wasTurned(filepath.Join(next, nextStage))
	if err != nil {
		return err
	}
	for _, e := range names {
		pin, to := filepath.Join(next, nextMaps, e.Name()), filepath.Join(k.dir, "maps", e.Name())
		if !turned {
			err = os.Remove(pin)
		} else if err = complete(e.Name(), pin, to); err == nil {
			err = os.Rename(pin, to)
		}
		if err != nil {
			return fmt.Errorf("end upgrade of map %s: %w", e.Name(), err)
		}
	}
	for i := 1; ; i++ {
		aside := fmt.Sprintf("%s-%d", next, i)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			return os.Rename(next, aside)
		}
	}
}

// wasTurned says whether new programs are in charge.
func wasTurned(pin string) (bool, error) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open stage of upgrade: %w", err)
	}
	var done uint32
	err = m.Lookup(uint32(0), &done)
	return done != 0, errors.Join(err, m.Close())
}

// complete carries over what the old map still has and the new one has not.
func complete(name, pin, oldPin string) error {
	old, err := ebpf.LoadPinnedMap(oldPin, nil)
	if err != nil {
		return err
	}
	defer old.Close() //nolint:errcheck // only read
	to, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // what was written is in the kernel
	c := &change{name: name, old: old, new: to}
	if !copied(old.Type()) || !c.recorded() {
		return nil
	}
	if c.from, err = pinnedShape(old); err == nil {
		c.to, err = pinnedShape(to)
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil
	}
	if err != nil {
		return err
	}
	c.key, c.value = moves(c.to.key, c.from.key), moves(c.to.value, c.from.value)
	return c.copy()
}

// Settle ends the start of a daemon: relays that are still on a link, because
// nobody asked for it, give way to the programs, and what they kept is freed.
func (k *Kernel) Settle() error {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("read directory of pins: %w", err)
	}
	var left []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), nextDir) {
			left = append(left, filepath.Join(k.dir, e.Name()))
		}
	}
	if len(left) == 0 {
		return nil
	}
	attached, err := k.attachments()
	if err != nil {
		return err
	}
	defer closeAll(attached)
	ours := programs(&k.DatapathObjects)
	for _, a := range attached {
		if a.relay {
			if err := a.replace(ours[a.hook]); err != nil {
				return err
			}
		}
	}
	for _, dir := range left {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove what an upgrade left: %w", err)
		}
	}
	return nil
}
