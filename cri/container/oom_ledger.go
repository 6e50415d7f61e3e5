// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/nodeagent/nodeagent/cri/store"
)

// oomLedger says which container the kernel's kills belong to. OOMBefore of
// those that run is what it keeps.
type oomLedger struct {
	root       string
	containers *store.Table[store.Container]
	log        *slog.Logger

	// mu is held while kills change hands: from what a container explains by
	// its own counter to OOMBefore of those beside it.
	mu sync.Mutex
}

// beside are the containers that run below the parent of a container's cgroup.
func (l *oomLedger) beside(id, cgroup string) []*store.Container {
	parent := filepath.Dir(cgroup)
	return l.containers.Select(func(c *store.Container) bool {
		return c.State == store.ContainerRunning && c.ID != id && c.Cgroup != "" && filepath.Dir(c.Cgroup) == parent
	})
}

func cgroupsOf(cs []*store.Container) []string {
	out := make([]string, 0, len(cs))
	for _, c := range cs {
		out = append(out, c.Cgroup)
	}
	return out
}

// before is OOMBefore of a container that starts.
func (l *oomLedger) before(id, cgroup string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, _ := oomElsewhere(l.root, cgroup, cgroupsOf(l.beside(id, cgroup)))
	return n
}

// settle returns the kills of a container that has ended; read says whether
// they were counted in its own cgroup. Those that run beside it are told, for
// it does not explain them any longer.
func (l *oomLedger) settle(ctx context.Context, id string, e ending, kills uint64, read bool) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	beside := l.beside(id, e.cgroup)
	if !read {
		c, ok := l.containers.Get(id)
		if !ok {
			return 0
		}
		e.beside, e.before = cgroupsOf(beside), c.OOMBefore
		kills = e.oomLost(l.root)
	}
	if kills == 0 {
		return 0
	}
	for _, b := range beside {
		_, err := l.containers.Update(b.ID, func(c *store.Container) error {
			c.OOMBefore += kills
			return nil
		})
		if err != nil { // its end may be blamed on memory wrongly, if its cgroup is lost, too
			l.log.DebugContext(ctx, "container does not learn of kills beside it", "container", b.ID, "err", err)
		}
	}
	return kills
}
