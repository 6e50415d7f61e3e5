// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// labelPull marks the leases of pulls with the reference that is pulled.
const labelPull = "nodeagent.dev/pull"

// leaseLife is longer than any pull takes. It is containerd's own choice.
const leaseLife = 24 * time.Hour

// PullLease is the lease of a pull that runs or has failed.
type PullLease struct {
	ID      string
	Ref     string
	Created time.Time
}

// CreatePullLease makes a lease for one call of PullImage or several.
func (c *Client) CreatePullLease(ctx context.Context, ref string) (string, error) {
	if c.c == nil {
		return "", ErrNotConnected
	}
	l, err := c.c.LeasesService().Create(ctx, leases.WithRandomID(),
		leases.WithExpiration(leaseLife), leases.WithLabel(labelPull, ref))
	if err != nil {
		return "", fmt.Errorf("create lease for pull of %s: %w", ref, err)
	}
	return l.ID, nil
}

// PullLeases lists the leases of pulls.
func (c *Client) PullLeases(ctx context.Context) ([]PullLease, error) {
	if c.c == nil {
		return nil, ErrNotConnected
	}
	list, err := c.c.LeasesService().List(ctx, fmt.Sprintf("labels.%q", labelPull))
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	out := make([]PullLease, 0, len(list))
	for _, l := range list {
		out = append(out, PullLease{ID: l.ID, Ref: l.Labels[labelPull], Created: l.CreatedAt})
	}
	return out, nil
}

// DeleteLeases removes leases; containerd then collects what they protected.
// An absent lease is success.
func (c *Client) DeleteLeases(ctx context.Context, ids ...string) error {
	if c.c == nil {
		return ErrNotConnected
	}
	var errs []error
	for _, id := range ids {
		err := c.c.LeasesService().Delete(ctx, leases.Lease{ID: id})
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete lease %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
