// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed managed.toml
var managedConfig string

// SupervisorDeps is what a Supervisor needs from the daemon.
type SupervisorDeps struct {
	Log *slog.Logger
	// Dir holds the generated configuration and the record of the process.
	Dir string
	// Env is added to the daemon's own environment.
	Env []string
}

// Supervisor runs a containerd of nodeagent's own: it starts one, or takes over
// the one that an earlier nodeagent left when it was killed, and starts another
// whenever it ends. Containers do not notice either.
type Supervisor struct {
	cfg Config
	log *slog.Logger
	dir string
	env []string

	cancel context.CancelFunc
	done   chan struct{}

	// mu guards the fields below.
	mu sync.Mutex
	// run is the present process; nil between two.
	run *managedProcess
	// restarts counts processes started after the first.
	restarts int
	// lastErr is why there is no process; nil while one runs.
	lastErr error
}

// restartBackoff bounds the pause between two starts.
const (
	minRestartBackoff = 100 * time.Millisecond
	maxRestartBackoff = 10 * time.Second
	// steadyAfter is how long a process has to live to reset the pause.
	steadyAfter = time.Minute
)

// NewSupervisor makes a supervisor; Start runs containerd.
func NewSupervisor(cfg Config, deps SupervisorDeps) (*Supervisor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Supervisor{cfg: cfg, log: deps.Log, dir: deps.Dir, env: deps.Env, done: make(chan struct{})}, nil
}

// Start returns when containerd answers on its socket.
func (s *Supervisor) Start(ctx context.Context) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make directory of managed containerd: %w", err)
	}
	conf, sum, err := s.render()
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, "containerd.toml")
	run := s.adopt(ctx, sum)
	if run == nil {
		if err := writeFile(path, conf); err != nil {
			return fmt.Errorf("write configuration of managed containerd: %w", err)
		}
		if run, err = s.spawn(path, sum); err != nil {
			return err
		}
	}
	if err := s.waitAnswer(ctx, run); err != nil {
		return errors.Join(err, run.end(ctx, s.cfg.StopTimeout))
	}
	s.mu.Lock()
	s.run = run
	s.mu.Unlock()
	watch, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	go s.watch(watch, path, sum)
	return nil
}

// Stop ends containerd; its shims and containers go on.
func (s *Supervisor) Stop(ctx context.Context) error {
	if s.cancel == nil {
		return nil
	}
	s.cancel()
	<-s.done
	s.mu.Lock()
	run := s.run
	s.mu.Unlock()
	if run == nil {
		return nil
	}
	return errors.Join(run.end(ctx, s.cfg.StopTimeout), remove(s.recordPath()))
}

// Ready says why containerd does not run; nil when it does.
func (s *Supervisor) Ready(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastErr
}

// Restarts counts how often containerd had to be started again.
func (s *Supervisor) Restarts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts
}

// watch starts containerd again whenever it ends, with a growing pause.
func (s *Supervisor) watch(ctx context.Context, conf, sum string) {
	defer close(s.done)
	backoff := minRestartBackoff
	begin := time.Now()
	for {
		s.mu.Lock()
		run := s.run
		s.mu.Unlock()
		if run != nil {
			select {
			case <-ctx.Done():
				return
			case <-run.done:
			}
			if time.Since(begin) > steadyAfter {
				backoff = minRestartBackoff
			}
			s.log.ErrorContext(ctx, "managed containerd ended, starting it again", "pid", run.pid, "pause", backoff)
			s.gone(run)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxRestartBackoff)
		begin = time.Now()
		s.again(ctx, conf, sum)
	}
}

// gone forgets a process that has ended.
func (s *Supervisor) gone(run *managedProcess) {
	err := errors.New("containerd ended, starting it again")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run, s.lastErr = nil, errors.Join(err, unix.Close(run.pidfd))
}

func (s *Supervisor) again(ctx context.Context, conf, sum string) {
	run, err := s.spawn(conf, sum)
	if err == nil {
		s.mu.Lock()
		s.restarts++
		s.run = run
		s.mu.Unlock()
		if err = s.waitAnswer(ctx, run); err == nil {
			s.mu.Lock()
			s.lastErr = nil
			s.mu.Unlock()
			s.log.InfoContext(ctx, "managed containerd runs again", "pid", run.pid)
			return
		}
	}
	if ctx.Err() == nil {
		s.log.ErrorContext(ctx, "start managed containerd", "err", err)
	}
	s.mu.Lock()
	s.lastErr = err
	s.mu.Unlock()
}

// render returns the configuration and a sum of it, of what it imports, of the program and of what its environment has for it,
// so that a process started for another configuration is not taken over.
func (s *Supervisor) render() ([]byte, string, error) {
	imports := make([]string, 0, len(s.cfg.Imports))
	sum := sha256.New()
	for _, path := range s.cfg.Imports {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, "", fmt.Errorf("read configuration that managed containerd imports: %w", err)
		}
		sum.Write(b)
		imports = append(imports, strconv.Quote(path))
	}
	conf := strings.NewReplacer(
		"@imports@", "["+strings.Join(imports, ", ")+"]", "@layer_fetch_buffer@", strconv.FormatInt(s.cfg.LayerFetchBuffer, 10),
		"@root@", strconv.Quote(s.cfg.Root), "@state@", strconv.Quote(s.cfg.State),
		"@address@", strconv.Quote(s.cfg.Address), "@ttrpc@", strconv.Quote(s.cfg.Address+".ttrpc"),
	).Replace(managedConfig)
	bin, err := s.lookPath(s.cfg.Binary)
	if err != nil {
		return nil, "", err
	}
	sum.Write([]byte(bin + "\n" + conf + strings.Join(s.env, "\n")))
	return []byte(conf), hex.EncodeToString(sum.Sum(nil)), nil
}

// waitAnswer returns when run answers on the socket, or says why it does not.
func (s *Supervisor) waitAnswer(ctx context.Context, run *managedProcess) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := answers(ctx, s.cfg.Address)
		if err == nil {
			return nil
		}
		select {
		case <-run.done:
			return fmt.Errorf("managed containerd (%s) ended at once; its messages are above", run.binary)
		case <-ctx.Done():
			return fmt.Errorf("managed containerd does not answer on %s: %w", s.cfg.Address, err)
		case <-tick.C:
		}
	}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of managed containerd: %w", err)
	}
	return nil
}

// writeFile replaces path as a whole.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// processStart returns when the process began, in ticks since boot, which with
// the pid names a process for good; see proc_pid_stat(5), field 22.
func processStart(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start of process %d: %w", pid, err)
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("read start of process %d: short stat", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

func signalProcess(pidfd int, sig unix.Signal) error {
	if err := unix.PidfdSendSignal(pidfd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %s: %w", unix.SignalName(sig), err)
	}
	return nil
}
