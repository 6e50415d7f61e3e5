// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
	"github.com/nodeagent/nodeagent/cmd/nodeagent/doctor"
	"github.com/nodeagent/nodeagent/cri/nri"
)

func doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look what this machine lacks, and what it costs",
		Args:  noArgs,
	}
	file, format := configFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, findings := doctorConfig(*file)
		findings = append(findings, doctor.Run(cmd.Context(), doctor.Checks(doctorOptions(cfg)))...)
		findings = append(findings, doctorDaemon(cmd)...)
		t := &table{header: []string{"LEVEL", "CHECK", "DETAIL", "HINT"}}
		for _, f := range findings {
			t.add(string(f.Level), f.Check, f.Detail, f.Hint)
		}
		if err := render(cmd.OutOrStdout(), *format, findings, t); err != nil {
			return err
		}
		if doctor.Worst(findings) == doctor.Fail {
			return errUnhealthy
		}
		return nil
	}
	return cmd
}

// doctorConfig falls back to the defaults when the file is absent or faulty.
func doctorConfig(file string) (*config.Configuration, []doctor.Finding) {
	cfg, err := config.Load(file)
	if err != nil {
		return config.Default(), []doctor.Finding{{
			Check: "configuration", Level: doctor.Warn, Detail: err.Error(), Hint: "the checks below assume the defaults",
		}}
	}
	return cfg, []doctor.Finding{{Check: "configuration", Level: doctor.OK, Detail: file}}
}

// doctorDaemon asks the daemon how its parts are.
func doctorDaemon(cmd *cobra.Command) []doctor.Finding {
	var s status
	if err := client(cmd).Get(cmd.Context(), "/v1/status", &s); err != nil {
		return []doctor.Finding{{Check: "daemon", Level: doctor.Warn, Detail: err.Error(), Hint: "systemctl status nodeagent"}}
	}
	out := []doctor.Finding{{Check: "daemon", Level: doctor.OK, Detail: s.Version + " runs"}}
	for _, c := range s.Conditions {
		if !c.Ready {
			out = append(out, doctor.Finding{Check: "daemon: " + c.Part, Level: doctor.Fail, Detail: c.Message})
		}
	}
	for _, a := range s.XDP {
		f := doctor.Finding{Check: "xdp: " + a.IfName, Level: doctor.OK, Detail: a.String()}
		if !a.Native {
			f.Level, f.Hint = doctor.Warn, "flows from outside take the ordinary way; dataplane.serviceOptions.xdp: off says that this is meant"
		}
		out = append(out, f)
	}
	return append(append(out, doctorNRI(s.NRI)...), doctorLeaks(cmd)...)
}

// doctorNRI judges what the daemon says of its plugins.
func doctorNRI(s *nri.Status) []doctor.Finding {
	if s == nil {
		return nil
	}
	out := []doctor.Finding{{Check: "nri", Level: doctor.OK, Detail: fmt.Sprintf("%d plugins connected", s.Plugins)}}
	if s.Socket != "" {
		if info, err := os.Stat(s.Socket); err != nil || info.Mode()&os.ModeSocket == 0 {
			out[0] = doctor.Finding{
				Check: "nri", Level: doctor.Warn, Detail: "no socket at " + s.Socket,
				Hint: "plugins cannot connect: another runtime has removed it; restart nodeagent",
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Failures)) {
		f := s.Failures[name]
		out = append(out, doctor.Finding{
			Check: "nri: " + name, Level: doctor.Warn, Detail: fmt.Sprintf("failed %d times, last %s: %s", f.Count, f.At.Format(time.RFC3339), f.Last),
			Hint: "it is left out after a timeout; look at its own log",
		})
	}
	return out
}

// doctorLeaks asks the rooms that can compare their records with the kernel:
// addresses and links, and volumes. A room that is off has nothing to say.
func doctorLeaks(cmd *cobra.Command) []doctor.Finding {
	var out []doctor.Finding
	var net api.VerifyAnswer
	if err := client(cmd).Get(cmd.Context(), "/v1/ipam/check", &net); err == nil {
		for _, p := range net.Problems {
			out = append(out, doctor.Finding{Check: "leaks: network", Level: doctor.Warn, Detail: p.Subject + ": " + strings.Join(p.Faults, "; "), Hint: "reconciliation frees it after two looks"})
		}
	}
	var vols []findingView
	if err := client(cmd).Post(cmd.Context(), "/v1/volumes/fsck", nil, &vols); err == nil {
		for _, f := range vols {
			out = append(out, doctor.Finding{Check: "leaks: volumes", Level: doctor.Warn, Detail: f.Object + ": " + f.Problem, Hint: "nodeagent volumes fsck --repair"})
		}
	}
	if len(out) == 0 {
		return []doctor.Finding{{Check: "leaks", Level: doctor.OK, Detail: "none"}}
	}
	return out
}

func doctorOptions(cfg *config.Configuration) doctor.Options {
	o := doctor.Options{Path: cfg.Containerd.Path, KubeProxy: !cfg.Dataplane.Services}
	if cfg.Storage.Enabled {
		for _, p := range cfg.Storage.Pools {
			o.Pools = append(o.Pools, p.Path)
		}
	}
	if cfg.CRI.Enabled && cfg.CRI.NRI.Enabled {
		o.NRIPlugins = cfg.CRI.NRI.PluginDir
	}
	if !cfg.Containerd.Managed {
		o.ContainerdSocket = cfg.Containerd.Address
	}
	return o
}

// reportMachine logs what the machine lacks, once, at start.
func reportMachine(ctx context.Context, log *slog.Logger, cfg *config.Configuration) {
	for _, f := range doctor.Run(ctx, doctor.Checks(doctorOptions(cfg))) {
		switch f.Level {
		case doctor.OK:
			log.DebugContext(ctx, "machine check", "check", f.Check, "detail", f.Detail)
		case doctor.Warn:
			log.WarnContext(ctx, "machine lacks something", "check", f.Check, "detail", f.Detail, "hint", f.Hint)
		case doctor.Fail:
			log.ErrorContext(ctx, "machine lacks something", "check", f.Check, "detail", f.Detail, "hint", f.Hint)
		}
	}
}
