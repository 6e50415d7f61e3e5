// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/nodeagent/nodeagent/cri/store"
)

// mountsFresh is how long the mounts that came with a new snapshot are used without asking again. A start follows within
// milliseconds as a rule; a snapshotter may want to be asked when it was restarted since.
const mountsFresh = 30 * time.Second

// mountsKnown are the mounts of snapshots that were just made. The zero value is ready.
type mountsKnown struct {
	mu    sync.Mutex // guards known
	known map[string]freshMounts
}

type freshMounts struct {
	mounts []mount.Mount
	until  time.Time
}

func (k *mountsKnown) put(id string, m []mount.Mount) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil {
		k.known = map[string]freshMounts{}
	}
	k.known[id] = freshMounts{mounts: m, until: time.Now().Add(mountsFresh)}
}

func (k *mountsKnown) get(id string) ([]mount.Mount, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f, ok := k.known[id]
	return f.mounts, ok && time.Now().Before(f.until)
}

func (k *mountsKnown) drop(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, id)
}

// rootfs is what a container's root file system is mounted from.
func (m *Manager) rootfs(ctx context.Context, c *store.Container) ([]mount.Mount, error) {
	if known, ok := m.mounts.get(c.ID); ok {
		return known, nil
	}
	return m.deps.Containerd.SnapshotMounts(ctx, c.Snapshotter, c.SnapshotKey)
}
