// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nodeagent/nodeagent/packaging"
)

// watchPeriod is how soon a new token, or a file that somebody removed, is
// put on the node. Tokens are renewed at 80 % of their life, hours before their
// end.
const watchPeriod = 30 * time.Second

// Watch keeps what was applied in place until ctx ends: the token is renewed
// by the kubelet in the pod, and has to follow to the node.
func (i *Installer) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		report, err := i.Apply(ctx)
		if err != nil {
			i.log.ErrorContext(ctx, "installation is not right, tried again", "err", err)
			continue
		}
		for _, c := range report.Changes {
			if c.Action == "created" || c.Action == "updated" {
				i.log.InfoContext(ctx, "file put on the node", "path", c.Path, "action", c.Action)
			}
		}
	}
}

// RunDaemon runs the daemon of mode pod until it ends or ctx does: its
// programs and mounts are the node's, its life is the pod's.
func (i *Installer) RunDaemon(ctx context.Context) error {
	argv := []string{filepath.Join(i.opts.binDir(), packaging.Daemon), "run", "--config", packaging.ConfigPath}
	if err := i.deps.Host.Run(ctx, argv, os.Stdout, os.Stderr); err != nil {
		return fmt.Errorf("run the daemon: %w", err)
	}
	return nil
}
