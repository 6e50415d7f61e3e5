// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// openState opens the one file of running things. It lives on a tmpfs and dies
// with the boot, so it is never synced: a kill leaves whole transactions.
func openState(runDir string) (*bbolt.DB, error) {
	path := filepath.Join(runDir, "state.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: 2 * time.Second, NoSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bbolt.ErrTimeout): //nolint:staticcheck // the alias is what Open returns
		return nil, fmt.Errorf("open state %s: another process holds it", path)
	case err != nil:
		if fi, statErr := os.Stat(path); statErr == nil && fi.Size() > 0 {
			return nil, fmt.Errorf("open state %s: %w (not a state file of this program; move it away to start afresh)", path, err)
		}
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return db, nil
}
