// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Features are what an OCI runtime says it can do.
type Features struct {
	RecursiveReadOnlyMounts bool
	IDMapMounts             bool
	UserNamespaces          bool
}

// RuntimeFeatures asks the runtime's shim; ErrNotImplemented when it does not
// tell.
func (c *Client) RuntimeFeatures(ctx context.Context, r Runtime) (Features, error) {
	name := r.Type
	if r.Path != "" {
		name = r.Path
	}
	opts, err := r.options()
	if err != nil {
		return Features{}, err
	}
	info, err := c.c.RuntimeInfo(ctx, name, opts)
	if err != nil {
		return Features{}, fmt.Errorf("ask runtime %s for its features: %w", name, err)
	}
	f, ok := info.Features.(*features.Features)
	if !ok {
		return Features{}, fmt.Errorf("features of runtime %s: %w", name, errdefs.ErrNotImplemented)
	}
	out := Features{RecursiveReadOnlyMounts: slices.Contains(f.MountOptions, "rro")}
	if f.Linux != nil {
		out.UserNamespaces = slices.Contains(f.Linux.Namespaces, "user")
		if e := f.Linux.MountExtensions; e != nil && e.IDMap != nil && e.IDMap.Enabled != nil {
			out.IDMapMounts = *e.IDMap.Enabled
		}
	}
	return out, nil
}

// Check tells whether containerd answers.
func (c *Client) Check(ctx context.Context) error {
	if _, err := c.c.Version(ctx); err != nil {
		return fmt.Errorf("ask containerd for its version: %w", err)
	}
	return nil
}
