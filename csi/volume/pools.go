// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/backend/btrfs"
	"github.com/nodeagent/nodeagent/csi/backend/directory"
	"github.com/nodeagent/nodeagent/csi/backend/disk"
	"github.com/nodeagent/nodeagent/csi/backend/file"
	"github.com/nodeagent/nodeagent/csi/backend/image"
	"github.com/nodeagent/nodeagent/csi/backend/lvm"
	"github.com/nodeagent/nodeagent/csi/backend/tmpfs"
)

// newBackend makes the backend that a pool names.
func newBackend(cfg PoolConfig) (backend.Backend, error) {
	switch cfg.Backend {
	case BackendFile:
		return file.New(cfg.Path), nil
	case BackendBtrfs:
		return btrfs.New(cfg.Path), nil
	case BackendDirectory:
		return directory.New(cfg.Path), nil
	case BackendTmpfs:
		return tmpfs.New(), nil
	case BackendImage:
		return image.New(cfg.Path), nil
	case BackendDisk:
		return disk.New(cfg.Path, cfg.Devices), nil
	case BackendLVM:
		return lvm.New(cfg.VolumeGroup, cfg.ThinPool, nil), nil
	default:
		return nil, fmt.Errorf("%w: backend %q is not built in", ErrInvalid, cfg.Backend)
	}
}

// PoolInfo is what a person wants to know of a pool.
type PoolInfo struct {
	Name, Path, Backend string
	Features            backend.Features
	Capacity            Capacity
	Err                 error // why it cannot serve; nil when it can
}

// Pools describes every pool, by name.
func (m *Manager) Pools(ctx context.Context) []PoolInfo {
	var out []PoolInfo
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		p := m.pools[name]
		info := PoolInfo{Name: name, Path: p.cfg.Path, Backend: p.cfg.Backend}
		info.Features, info.Err = p.ready()
		if info.Err == nil {
			p.books.Lock()
			info.Capacity, info.Err = m.account(ctx, p)
			p.books.Unlock()
		}
		out = append(out, info)
	}
	return out
}
