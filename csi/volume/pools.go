// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/backend/file"
)

// newBackend makes the backend that a pool names.
func newBackend(cfg PoolConfig) (backend.Backend, error) {
	switch cfg.Backend {
	case BackendFile:
		return file.New(cfg.Path), nil
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
			p.mu.Lock()
			info.Capacity, info.Err = m.account(ctx, p)
			p.mu.Unlock()
		}
		out = append(out, info)
	}
	return out
}
