// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// Uninstall removes the pins of all layouts, so that the kernel frees what is
// in them, and the filters of every interface of the calling thread's network
// namespace. What is gone already is no fault.
func Uninstall(bpffs string) error {
	var errs []error
	entries, err := os.ReadDir(bpffs)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "v") {
			continue
		}
		if err := os.RemoveAll(filepath.Join(bpffs, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("remove pins: %w", err))
		}
	}
	errs = append(errs, forgetRoutes())
	h := &netlink.Handle{}
	links, err := retry(h.LinkList)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			if err := deleteFilter(l.Attrs().Index, parent); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
