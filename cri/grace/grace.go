// SPDX-License-Identifier: Apache-2.0

// Package grace keeps a wait of the kernel's off the way of processes that are about to be started.
//
// Who moves a process into a cgroup takes a lock of the whole kernel, cgroup_threadgroup_rwsem, which costs its readers (fork, exec,
// exit) nothing as long as nobody takes it. The price is that the first who takes it after a rest waits for an RCU grace period, 6 to
// 15 ms, and that whoever takes it within the next one does not wait. An OCI runtime moves every container's first process, and so pays
// that. Here the lock is taken when a call arrives that will lead to such a move, and taken again until the move has happened, so that
// the grace period passes while other work is done. Mounting cgroup file systems with favordynmods has the same effect, for good and for all.
//
// The lock is taken by moving this process to the cgroup that it is in, which changes nothing.
package grace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
)

// interval is how often the lock is taken: often enough that no grace period, which takes longer, ends in between. Each time
// takes some 20 µs.
const interval = 6 * time.Millisecond

// Keeper keeps the lock cheap to take for as long as somebody asks for it.
type Keeper struct {
	log  *slog.Logger
	take func() error // takes the lock once

	mu     sync.Mutex // guards what follows
	until  time.Time
	closed bool
	// working says that the goroutine that running waits for keeps the lock.
	working bool
	running sync.WaitGroup
}

// New returns a Keeper that has not done anything yet.
func New(log *slog.Logger) *Keeper {
	p := &place{}
	return &Keeper{log: log, take: p.stay}
}

// Hold makes moves into cgroups quick as soon as a grace period has passed and until d has passed, but at least for another grace
// period. It does not wait, and has no effect where this process may not write to cgroups.
func (k *Keeper) Hold(ctx context.Context, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if until := time.Now().Add(d); until.After(k.until) {
		k.until = until
	}
	if k.working || k.closed {
		return
	}
	k.working = true
	ctx = context.WithoutCancel(ctx) // what it does is for all calls
	k.running.Go(func() { k.keep(ctx) })
}

// keep takes the lock again and again until nobody wants it.
func (k *Keeper) keep(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := k.take()
		if err != nil {
			k.log.DebugContext(ctx, "moves into cgroups wait for the kernel", "err", err)
		}
		if k.done(err) {
			return
		}
		<-tick.C
	}
}

// done says whether the work has come to its end; it is not tried again when it failed.
func (k *Keeper) done(err error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = k.closed || err != nil
	k.working = !k.closed && time.Now().Before(k.until)
	return !k.working
}

// Close ends the work and waits for that.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.running.Wait()
}

// place is the cgroup that this process is in.
type place struct {
	own   string // /proc/self/cgroup when procs was found
	procs string // the file that lists the cgroup's processes
}

// stay moves this process to where it is.
func (p *place) stay() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("find own cgroup: %w", err)
	}
	if p.own != string(own) { // somebody has moved it, or it is the first time
		if p.procs, err = procs(string(own)); err != nil {
			return err
		}
		p.own = string(own)
	}
	f, err := os.OpenFile(p.procs, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("take cgroup lock: %w", err)
	}
	_, err = f.WriteString("0")
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("take cgroup lock: %w", err)
	}
	return nil
}

// procs finds the file that lists the processes of a process's cgroup, in any hierarchy: the lock is the same for all.
func procs(own string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2", "cgroup"))
	if err != nil {
		return "", fmt.Errorf("find cgroup file systems: %w", err)
	}
	for _, m := range mounts {
		for line := range strings.Lines(own) {
			if path, ok := within(m, strings.TrimSuffix(line, "\n")); ok {
				return path, nil
			}
		}
	}
	return "", errors.New("find own cgroup: it is in no cgroup file system that is mounted")
}

// within is where a mount shows the cgroup of a line of /proc/self/cgroup, "hierarchy:controllers:path".
func within(m *mountinfo.Info, line string) (string, bool) {
	f := strings.SplitN(line, ":", 3)
	if len(f) != 3 {
		return "", false
	}
	switch m.FSType {
	case "cgroup2":
		if f[0] != "0" {
			return "", false
		}
	default:
		// The file system's options name its controllers, one of which may be like "name=systemd".
		first, _, _ := strings.Cut(f[1], ",")
		if first == "" || !strings.Contains(","+m.VFSOptions+",", ","+first+",") {
			return "", false
		}
	}
	rel, err := filepath.Rel(m.Root, f[2])
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", false
	}
	return filepath.Join(m.Mountpoint, rel, "cgroup.procs"), true
}
