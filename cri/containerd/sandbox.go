// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// Sandbox is one that a shim makes by containerd's Sandbox API, as the shims of virtual machines do. Containers whose
// Runtime names it are made in its shim.
type Sandbox struct {
	ID      string
	Runtime Runtime
	// NetNS is the path of its network namespace, "" for the node's network.
	NetNS string
	// Config is what the shim is told of the pod, a message that containerd can encode.
	Config any
	// Labels and Extensions are as of Container.
	Labels     map[string]string
	Extensions map[string][]byte
}

// sandboxer is the controller of containerd that drives shims.
const sandboxer = "shim"

// CreateSandbox starts the sandbox's shim and has it make ready. What a failed call leaves is RemoveSandbox's.
func (c *Client) CreateSandbox(ctx context.Context, s Sandbox) error {
	opts, err := s.Runtime.options()
	if err != nil {
		return err
	}
	rec := sandbox.Sandbox{
		ID: s.ID, Labels: fitting(s.Labels), Sandboxer: sandboxer, Extensions: map[string]typeurl.Any{},
		Runtime: sandbox.RuntimeOpts{Name: s.Runtime.name(), Options: opts},
	}
	for name, v := range s.Extensions {
		rec.Extensions[name] = extension{typ: name, value: v}
	}
	if _, err := c.c.SandboxStore().Create(ctx, rec); err != nil {
		return fmt.Errorf("create record of sandbox %s in containerd: %w", s.ID, err)
	}
	err = c.c.SandboxController(sandboxer).Create(ctx, rec, sandbox.WithOptions(s.Config), sandbox.WithNetNSPath(s.NetNS))
	if err != nil {
		return fmt.Errorf("create sandbox %s in its shim: %w", s.ID, err)
	}
	return nil
}

// StartSandbox starts what CreateSandbox made and returns the process that stands for it.
func (c *Client) StartSandbox(ctx context.Context, id string) (uint32, error) {
	i, err := c.c.SandboxController(sandboxer).Start(ctx, id)
	if err != nil {
		return 0, fmt.Errorf("start sandbox %s: %w", id, err)
	}
	return i.Pid, nil
}

// WaitSandbox returns when the sandbox has ended; one that is not there is NotFound.
func (c *Client) WaitSandbox(ctx context.Context, id string) error {
	if _, err := c.c.SandboxController(sandboxer).Wait(ctx, id); err != nil {
		return fmt.Errorf("wait for sandbox %s: %w", id, err)
	}
	return nil
}

// SandboxInfo is what a sandbox's shim says of it, by name, and its state.
func (c *Client) SandboxInfo(ctx context.Context, id string) (map[string]string, error) {
	s, err := c.c.SandboxController(sandboxer).Status(ctx, id, true)
	if err != nil {
		return nil, fmt.Errorf("status of sandbox %s: %w", id, err)
	}
	info := map[string]string{"state": s.State, "pid": fmt.Sprint(s.Pid), "address": s.Address}
	maps.Copy(info, s.Info)
	return info, nil
}

// RemoveSandbox stops the sandbox, ends its shim and forgets it. What is not there is removed already.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	ctl := c.c.SandboxController(sandboxer)
	absent := func(what string, err error) error {
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("%s sandbox %s: %w", what, id, err)
	}
	if err := errors.Join(absent("stop", ctl.Stop(ctx, id)), absent("shut down", ctl.Shutdown(ctx, id))); err != nil {
		return err
	}
	return absent("delete record of", c.c.SandboxStore().Delete(ctx, id))
}

// Sandboxes returns the extensions of those sandboxes of CreateSandbox that have that label, by id.
func (c *Client) Sandboxes(ctx context.Context, label, value string) (map[string]map[string][]byte, error) {
	list, err := c.c.SandboxStore().List(ctx, fmt.Sprintf("labels.%q==%s", label, value))
	if err != nil {
		return nil, fmt.Errorf("list sandboxes in containerd: %w", err)
	}
	out := map[string]map[string][]byte{}
	for _, s := range list {
		if s.Sandboxer != sandboxer {
			continue
		}
		ext := map[string][]byte{}
		for name, v := range s.Extensions {
			ext[name] = v.GetValue()
		}
		out[s.ID] = ext
	}
	return out, nil
}
