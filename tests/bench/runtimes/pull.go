// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// GroupPull holds the times of pulls.
const GroupPull = "pull from a registry on the machine"

// MeasurePull pulls a small, a large and a many-file image, one peer in turn.
func (o *Options) MeasurePull(ctx context.Context, r *lab.Run) (retErr error) {
	peers, stop, err := o.start(ctx, r, "--pull-images")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, stop()) }()
	images := []struct{ name, ref string }{
		{"small: one layer of 2 MB", image},
		{"large: four layers of 64 MiB", "registry.local/bench/large:1"},
		{"many files: 20,000 in one layer", "registry.local/bench/files:1"},
	}
	for _, p := range peers {
		if err := p.remove(ctx, image); err != nil {
			return err
		}
	}
	for _, im := range images {
		for i := range o.Pulls {
			for _, p := range peers {
				took, err := p.pull(ctx, im.ref)
				if err != nil {
					return err
				}
				if err := p.remove(ctx, im.ref); err != nil {
					return err
				}
				r.Area.Duration(GroupPull, im.name, p.name, took)
			}
			r.Progress(im.name, i+1, o.Pulls)
		}
	}
	return nil
}
