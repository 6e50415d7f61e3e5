// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
	"github.com/nodeagent/nodeagent/packaging/install"
)

func installCommand() *cobra.Command {
	o := install.Options{Version: version, Node: os.Getenv("NODE_NAME")}
	var watch bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the daemon, the CNI program and the configuration on this node, or upgrade them",
		Long: "Installs the programs beside this one, the configuration, and the systemd unit, and starts it.\n" +
			"A second run changes nothing; what was installed is recorded, and uninstall takes only that.",
		Args: noArgs,
	}
	format := outputFlag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Root, "root", "/", "root directory of the node; in a pod, where it is mounted")
	f.StringVar((*string)(&o.Mode), "mode", string(install.ModeHost), "host: a systemd unit; pod: run in this pod, beside another CRI runtime")
	f.StringVar(&o.Programs, "programs", programsDir(), "directory that the programs are taken from")
	f.StringVar(&o.BinDir, "bin-dir", "", "directory for the programs on the node")
	f.StringVar(&o.CNIBinDir, "cni-bin-dir", "", "directory in which the node's runtime looks for CNI programs")
	f.StringVarP(&o.Config, "config", "c", "", "configuration file to install; none: the default, where there is none yet")
	f.StringArrayVar(&o.Set, "set", nil, "path.to.field=value for what the configuration file leaves out (repeat)")
	f.StringVar(&o.Token, "token", "", "file with a token for the API server; needs --ca")
	f.StringVar(&o.CA, "ca", "", "file with the API server's certificate authority; needs --token")
	f.StringArrayVar(&o.Servers, "server", nil, "address of the API server (repeat); none: the kubelet's")
	f.BoolVar(&o.Kubelet, "kubelet", false, "write the kubelet's drop-ins; they take effect at its next start")
	f.BoolVar(&watch, "watch", false, "stay, and keep what was installed in place; in mode pod, run the daemon")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		i, err := newInstaller(cmd, o)
		if err != nil {
			return err
		}
		report, err := i.Apply(ctx)
		if err := errors.Join(err, printReport(cmd, *format, report)); err != nil || !watch {
			return err
		}
		return stay(ctx, i, o.Mode)
	}
	return cmd
}

func uninstallCommand() *cobra.Command {
	o := install.Options{Mode: install.ModeHost, Programs: programsDir()}
	var purge bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the daemon and remove what install put on this node",
		Args:  noArgs,
	}
	format := outputFlag(cmd)
	cmd.Flags().StringVar(&o.Root, "root", "/", "root directory of the node")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove files that were changed since, too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		i, err := newInstaller(cmd, o)
		if err != nil {
			return err
		}
		report, err := i.Remove(cmd.Context(), purge)
		return errors.Join(err, printReport(cmd, *format, report))
	}
	return cmd
}

func newInstaller(cmd *cobra.Command, o install.Options) (*install.Installer, error) {
	log, _, err := newLogger(cmd.ErrOrStderr(), config.Log{Level: "info", Format: "text"})
	if err != nil {
		return nil, err
	}
	i, err := install.New(o, install.Deps{Log: log, CheckConfig: func(data []byte) error {
		_, err := config.Parse("config.yaml", data)
		return err
	}})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return i, nil
}

// stay keeps the installation in place until a signal; the pod's daemon ends it too.
func stay(ctx context.Context, i *install.Installer, mode install.Mode) error {
	if mode != install.ModePod {
		return i.Watch(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan error, 1)
	go func() { watched <- i.Watch(ctx) }()
	err := i.RunDaemon(ctx)
	cancel()
	return errors.Join(err, <-watched)
}

// printReport tells what became of each file; nothing when there is no report.
func printReport(cmd *cobra.Command, format string, r *install.Report) error {
	if r == nil {
		return nil
	}
	t := &table{header: []string{"FILE", "ACTION", "WHY"}}
	for _, c := range r.Changes {
		t.add(c.Path, c.Action, c.Why)
	}
	for _, n := range r.Notes {
		t.add(n)
	}
	return render(cmd.OutOrStdout(), format, r, t)
}

// programsDir is where this program lies; the others lie beside it.
func programsDir() string {
	self, err := os.Executable()
	if err != nil {
		return "/usr/bin"
	}
	return filepath.Dir(self)
}
