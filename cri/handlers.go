// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/shim"
)

// handlers are the runtime handlers in force. They are replaced as a whole, so
// that a call that began with some ends with them.
type handlers struct {
	log *slog.Logger
	now atomic.Pointer[handlerSet]
	// changing is held by who replaces them.
	changing sync.Mutex
}

// handlerSet is the configured handlers with what is known of each. It is never changed.
type handlerSet struct {
	cfg   Config
	known map[string]sandbox.Handler
}

func newHandlers(cfg Config, log *slog.Logger) *handlers {
	h := &handlers{log: log}
	h.now.Store(newHandlerSet(cfg, log))
	return h
}

func newHandlerSet(cfg Config, log *slog.Logger) *handlerSet {
	cfg.Handlers = maps.Clone(cfg.Handlers)
	h := &handlerSet{cfg: cfg, known: map[string]sandbox.Handler{}}
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
	set := h.now.Load()
	if name == "" {
		name = set.cfg.DefaultHandler
	}
	return set.cfg.Handlers[name].Exec != ExecRuntime
}

// get finds a handler; "" is the default one.
func (h *handlers) get(name string) (sandbox.Handler, error) {
	set := h.now.Load()
	if name == "" {
		name = set.cfg.DefaultHandler
	}
	k, ok := set.known[name]
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

// probe asks what the handlers in force can do.
func (h *handlers) probe(ctx context.Context, c *containerd.Client) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	set, err := h.now.Load().probed(ctx, c)
	if err == nil {
		h.now.Store(set)
	}
	return err
}

// replace puts others in force when check agrees.
func (h *handlers) replace(ctx context.Context, cfg Config, c *containerd.Client, check func(old, next *handlerSet) error) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	next := newHandlerSet(cfg, h.log)
	if err := check(h.now.Load(), next); err != nil {
		return err
	}
	next, err := next.probed(ctx, c)
	if err == nil {
		h.now.Store(next)
	}
	return err
}

// probed asks each handler's OCI runtime what it can do. A handler that does not
// answer is served with no features, as one whose binary comes later; a
// containerd that does not answer is an error.
func (h *handlerSet) probed(ctx context.Context, c *containerd.Client) (*handlerSet, error) {
	if err := c.Check(ctx); err != nil {
		return nil, err
	}
	out := &handlerSet{cfg: h.cfg, known: maps.Clone(h.known)}
	for name, cfg := range h.cfg.Handlers {
		if !cfg.isRunc() {
			continue
		}
		f, err := c.RuntimeFeatures(ctx, cfg.runtime(h.cfg.CgroupDriver))
		if errdefs.IsUnavailable(err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		k := out.known[name]
		k.Spec.RecursiveReadOnlyMounts = f.RecursiveReadOnlyMounts
		k.Spec.IDMapMounts = f.IDMapMounts
		k.Spec.UserNamespaces = f.UserNamespaces
		out.known[name] = k
	}
	return out, nil
}

// cri lists the handlers as Status reports them: each by name, and the default
// one again under the empty name. userNamespaces says whether the machine has
// what they take.
func (h *handlers) cri(userNamespaces bool) []*runtimeapi.RuntimeHandler {
	set := h.now.Load()
	one := func(name string, k sandbox.Handler) *runtimeapi.RuntimeHandler {
		return &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: k.Spec.RecursiveReadOnlyMounts,
			UserNamespaces:          userNamespaces && k.Spec.UserNamespaces && k.Spec.IDMapMounts,
		}}
	}
	out := []*runtimeapi.RuntimeHandler{one("", set.known[set.cfg.DefaultHandler])}
	for _, name := range slices.Sorted(maps.Keys(set.known)) {
		out = append(out, one(name, set.known[name]))
	}
	return out
}
