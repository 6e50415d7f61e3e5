// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
)

// stopTimeout bounds the reverse stop of all parts together.
const stopTimeout = 30 * time.Second

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon until a signal ends it; pods go on without it",
		Args:  noArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file)
		if err != nil {
			return err
		}
		log, level, err := newLogger(cmd.ErrOrStderr(), cfg.Log)
		if err != nil {
			return err
		}
		manager, err := takeManager()
		if err != nil {
			return err
		}
		return run(cmd.Context(), &process{file: *file, cfg: cfg, log: log, level: level, manager: manager})
	}
	return cmd
}

// process is one run of the daemon.
type process struct {
	file  string
	cfg   *config.Configuration
	log   *slog.Logger
	level *slog.LevelVar
	// manager is told when the daemon is ready and when it stops.
	manager manager
	// mu guards reloads, which put what may change in force; each refuses it as a whole or not at all.
	mu      sync.Mutex
	reloads []func(ctx context.Context, next *config.Configuration) error
}

// onReload has fn called with each new configuration.
func (p *process) onReload(fn func(ctx context.Context, next *config.Configuration) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reloads = append(p.reloads, fn)
}

// run claims the run directory, starts every part in order, tells the service
// manager, waits for a signal and stops in reverse.
func run(parent context.Context, p *process) (retErr error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stopSignals := p.handleSignals(ctx, cancel)
	defer stopSignals()

	own, err := claimInstance(p.cfg.Node.RunDir)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, own.release()) }()
	if err := makePassable(p.cfg.Node.StateDir); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	db, err := openState(p.cfg.Node.RunDir)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, db.Close()) }()

	p.log.InfoContext(ctx, "starting", "version", version, "node", p.cfg.Node.Name, "config", p.file)
	reportMachine(ctx, p.log, p.cfg)
	parts, err := assemble(ctx, p, db)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := startAll(ctx, p.log, parts, stopTimeout); err != nil {
		if parent.Err() == nil && errors.Is(err, context.Canceled) {
			return nil // a signal ended it while starting; all has been stopped
		}
		return err
	}
	p.log.InfoContext(ctx, "ready", "took", time.Since(begin))
	p.notify(ctx, daemon.SdNotifyReady)
	keepSmall(ctx, p.log)
	p.notify(ctx, daemon.SdNotifyStopping)
	err = stopAll(ctx, p.log, parts, stopTimeout)
	p.log.InfoContext(ctx, "stopped")
	return err
}

func (p *process) notify(ctx context.Context, state string) {
	if err := p.manager.tell(ctx, state); err != nil {
		p.log.WarnContext(ctx, "notify service manager", "err", err)
	}
}

// handleSignals cancels on the first SIGINT or SIGTERM, exits on the second,
// and reloads on SIGHUP. The returned function ends the handling.
func (p *process) handleSignals(ctx context.Context, cancel context.CancelFunc) func() {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	quit := make(chan struct{})
	go func() {
		ending := false
		for {
			select {
			case <-quit:
				return
			case s := <-ch:
				switch {
				case s == unix.SIGHUP:
					p.reload(ctx)
				case ending:
					p.log.WarnContext(ctx, "second signal, leaving at once", "signal", s.String())
					os.Exit(exitFailure)
				default:
					ending = true
					p.log.InfoContext(ctx, "signal, stopping", "signal", s.String())
					cancel()
				}
			}
		}
	}()
	return func() { signal.Stop(ch); close(quit) }
}

// reload applies what may change while running, the log level, the rate of traces
// and the runtime handlers, and refuses a file that changes anything else, naming it.
func (p *process) reload(ctx context.Context) {
	next, err := config.Load(p.file)
	if err != nil {
		p.log.ErrorContext(ctx, "reload refused, the running configuration stays", "err", err)
		return
	}
	if fixed := config.Changed(p.cfg, next, "log.level", "tracing.samplingRatePerMillion", "cri.handlers"); len(fixed) > 0 {
		p.log.ErrorContext(ctx, "reload refused, these fields need a restart", "fields", fmt.Sprint(fixed))
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, fn := range p.reloads {
		if err := fn(ctx, next); err != nil {
			p.log.ErrorContext(ctx, "reload refused, the running configuration stays", "err", err)
			return
		}
	}
	if err := setLevel(p.level, next.Log.Level); err != nil {
		p.log.ErrorContext(ctx, "reload refused", "err", err)
		return
	}
	p.cfg.Log.Level, p.cfg.Tracing, p.cfg.CRI.Handlers = next.Log.Level, next.Tracing, next.CRI.Handlers
	p.log.InfoContext(ctx, "reloaded", "log_level", next.Log.Level)
}
