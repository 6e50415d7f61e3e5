// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cri/steps/stepstest"
)

// poolWorld is a world with a pool that has filled itself.
func poolWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.pool = 4
	w.restart()
	w.filled(poolIdle)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		for _, sb := range w.m.deps.Store.Sandboxes.Select(nil) {
			if err := w.m.Remove(ctx, sb.ID); err != nil {
				t.Error(err)
			}
		}
	})
	return w
}

// filled waits until the pool holds some slots.
func (w *world) filled(want int) {
	w.t.Helper()
	limit := time.After(time.Minute)
	for {
		if n, _, _ := w.m.PoolStats(); n == want {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-limit:
			n, hits, misses := w.m.PoolStats()
			w.t.Fatalf("the pool holds %d (%d hits, %d misses), want %d", n, hits, misses, want)
		}
	}
}

func (w *world) slots() []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, "na", "pool"))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func usual(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name}, Hostname: name,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestRootPool claims slots, and sees that a pod gets one whole: its namespaces, with the pod's name in them.
func TestRootPool(t *testing.T) {
	w := poolWorld(t)
	ready := map[uint64]bool{}
	for _, s := range w.slots() {
		ready[inode(t, filepath.Join(w.dir, "na", "pool", s, "net"))] = true
	}
	id, err := w.m.Run(t.Context(), usual("claims"), "")
	if err != nil {
		t.Fatal(err)
	}
	if pin := filepath.Join(w.m.pins(id), "net"); !ready[inode(t, pin)] || !pinned(pin) {
		t.Error("the sandbox's network was not made ahead")
	}
	var name string
	if err := inside(w.m.pins(id), unix.CLONE_NEWUTS, func() (err error) {
		name, err = os.Hostname()
		return err
	}); err != nil || name != "claims" {
		t.Errorf("host name %q, %v", name, err)
	}
	if n := len(w.m.deps.Store.Sandboxes.Select(nil)); n != 1 {
		t.Errorf("%d sandboxes are known, want one", n)
	}
	w.filled(poolIdle)
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"host": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
		},
		"sysctls": func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "9"} },
	} {
		cfg := usual(name)
		change(cfg)
		if _, err := w.m.Run(t.Context(), cfg, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, hits, misses := w.m.PoolStats(); hits != 1 || misses != 0 {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
}

// TestRootPoolFoughtOver has more pods than slots at once.
func TestRootPoolFoughtOver(t *testing.T) {
	w := poolWorld(t)
	var wg sync.WaitGroup
	nets := make([]uint64, 8)
	for i := range nets {
		wg.Go(func() {
			id, err := w.m.Run(t.Context(), usual(fmt.Sprint("pod", i)), "")
			if err != nil {
				t.Error(err)
				return
			}
			nets[i] = inode(t, filepath.Join(w.m.pins(id), "net"))
		})
	}
	wg.Wait()
	slices.Sort(nets)
	if len(slices.Compact(nets)) != 8 {
		t.Errorf("two pods have one network: %v", nets)
	}
	if _, hits, misses := w.m.PoolStats(); hits < poolIdle || hits+misses != 8 {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
}

// TestRootPoolLeavesNothing: after a failure, after an end and after kill -9 at any moment there is no slot that nobody knows.
func TestRootPoolLeavesNothing(t *testing.T) {
	w := poolWorld(t)
	nothing := func(when string) {
		t.Helper()
		if s, n := w.slots(), w.net.WarmSlots(); len(s) > 0 || len(n) > 0 {
			t.Errorf("%s: left %v, %v", when, s, n)
		}
	}
	w.net.attach = stepstest.ErrInjected
	if _, err := w.m.Run(t.Context(), usual("fails"), ""); !errors.Is(err, stepstest.ErrInjected) {
		t.Fatal(err)
	}
	if n := len(w.net.WarmSlots()); n >= poolIdle+1 {
		t.Errorf("the slot of a failed pod is left: %v", w.net.WarmSlots())
	}
	w.filled(poolIdle)
	// An address that waits is given to a pod that needs one.
	w.net.attach = fmt.Errorf("no address: %w", ipam.ErrExhausted)
	if _, err := w.m.Run(t.Context(), usual("last"), ""); err != nil {
		t.Errorf("a pod failed for want of the addresses of the pool: %v", err)
	}
	// Killed with slots that wait, one that is being made, and one that is claimed and not attached.
	w.m.Close()
	nothing("closed")
	w.pool = 0
	w.restart()
	forgotten := &pool{m: w.m, net: w.net, wake: make(chan struct{}, 1)}
	for range 2 {
		if err := forgotten.add(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	if forgotten.claim(w.m.pins("nobody")) == "" {
		t.Error("a slot cannot be claimed")
	}
	if err := os.MkdirAll(forgotten.dir("warm-half"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.restart()
	nothing("recovered")
	if _, err := os.Stat(w.m.pins("nobody")); !os.IsNotExist(err) {
		t.Errorf("pins of nobody: %v", err)
	}
}
