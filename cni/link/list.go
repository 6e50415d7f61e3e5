// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// dumpTries bounds the repeats of a dump that changes interrupted.
const dumpTries = 8

// dump repeats a listing that changes of the listed table interrupted. No
// attach or detach waits for it.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var got []T
	err := error(netlink.ErrDumpInterrupted)
	for range dumpTries {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}

// Owned is the host end of a link that this package made.
type Owned struct {
	Name  string
	Index int
	// Alias is the Spec's.
	Alias string
	// Retired links wait for their deletion.
	Retired bool
}

// List returns all links of this package whose host ends begin with prefix. It
// reads a dump: for recovery and reconciliation only.
func (w *Wire) List(ctx context.Context, prefix string) (out []Owned, err error) {
	err = w.with(ctx, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return err
		}
		for _, l := range links {
			at := l.Attrs()
			if ours(l) && strings.HasPrefix(at.Name, prefix) {
				out = append(out, Owned{at.Name, at.Index, at.Alias, at.Group == groupRetired})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return out, nil
}

// Exists says if the link with this host end and index is there.
func (w *Wire) Exists(ctx context.Context, hostName string, index int) (bool, error) {
	got, err := w.indexOf(ctx, hostName)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", hostName, err)
	}
	return got == index, nil
}
