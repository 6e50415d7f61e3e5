// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/shim"
)

// handlers are the configured runtime handlers with what is known of each.
type handlers struct {
	cfg Config

	// mu guards known.
	mu    sync.RWMutex
	known map[string]sandbox.Handler
}

func newHandlers(cfg Config, log *slog.Logger) *handlers {
	cfg.Handlers = maps.Clone(cfg.Handlers)
	h := &handlers{cfg: cfg, known: map[string]sandbox.Handler{}}
	for name, c := range cfg.Handlers {
		c = c.withShim(name, log)
		cfg.Handlers[name] = c
		h.known[name] = sandbox.Handler{
			Runtime: c.runtime(cfg.CgroupDriver), Snapshotter: c.Snapshotter, Spec: c.specHandler(name), Mode: c.Sandbox,
		}
	}
	return h
}

// withShim finds the program of nodeagent's own shim. Without it pods still run, with containerd's.
func (h Handler) withShim(name string, log *slog.Logger) Handler {
	if h.Type != containerd.ShimType || h.Path != "" {
		return h
	}
	path, err := shim.Find()
	if err != nil {
		log.Warn("runtime handler uses containerd's own shim", "handler", name, "err", err)
		h.Type = containerd.RuncType
		return h
	}
	h.Path = path
	return h
}

// ours says whether a handler's containers have nodeagent's own shim.
func (h *handlers) ours(name string) bool {
	k, err := h.get(name)
	return err == nil && k.Runtime.Type == containerd.ShimType
}

// ownShim returns a handler's runtime when its containers have nodeagent's own shim.
func (h *handlers) ownShim(name string) (containerd.Runtime, bool) {
	k, err := h.get(name)
	return k.Runtime, err == nil && k.Runtime.Type == containerd.ShimType && k.Runtime.Path != ""
}

// direct says whether a handler's containers get the processes of exec from the shim itself.
func (h *handlers) direct(name string) bool {
	if name == "" {
		name = h.cfg.DefaultHandler
	}
	return h.cfg.Handlers[name].Exec != ExecRuntime
}

// get finds a handler; "" is the default one.
func (h *handlers) get(name string) (sandbox.Handler, error) {
	if name == "" {
		name = h.cfg.DefaultHandler
	}
	h.mu.RLock()
	defer h.mu.RUnlock()
	k, ok := h.known[name]
	if !ok {
		return sandbox.Handler{}, fmt.Errorf("runtime_handler %q is not configured: %w", name, errdefs.ErrInvalidArgument)
	}
	return k, nil
}

// knows tells whether a handler is configured.
func (h *handlers) knows(name string) bool {
	_, err := h.get(name)
	return err == nil
}

// probe asks each handler's OCI runtime what it can do. A handler that does not
// answer is served with no features, as one whose binary comes later; a
// containerd that does not answer is an error.
func (h *handlers) probe(ctx context.Context, c *containerd.Client) error {
	if err := c.Check(ctx); err != nil {
		return err
	}
	for name, cfg := range h.cfg.Handlers {
		if !cfg.isRunc() {
			continue
		}
		f, err := c.RuntimeFeatures(ctx, cfg.runtime(h.cfg.CgroupDriver))
		if err != nil {
			if errdefs.IsUnavailable(err) {
				return err
			}
			continue
		}
		h.mu.Lock()
		k := h.known[name]
		k.Spec.RecursiveReadOnlyMounts = f.RecursiveReadOnlyMounts
		k.Spec.IDMapMounts = f.IDMapMounts
		k.Spec.UserNamespaces = f.UserNamespaces
		h.known[name] = k
		h.mu.Unlock()
	}
	return nil
}

// cri lists the handlers as Status reports them: each by name, and the default
// one again under the empty name.
func (h *handlers) cri() []*runtimeapi.RuntimeHandler {
	h.mu.RLock()
	defer h.mu.RUnlock()
	one := func(name string, k sandbox.Handler) *runtimeapi.RuntimeHandler {
		return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: k.Spec.RecursiveReadOnlyMounts,
			UserNamespaces:          k.Spec.UserNamespaces && k.Spec.IDMapMounts,
		}}
	}
	out := []*runtimeapi.RuntimeHandler{one("", h.known[h.cfg.DefaultHandler])}
	for _, name := range slices.Sorted(maps.Keys(h.known)) {
		out = append(out, one(name, h.known[name]))
	}
	return out
}
