// SPDX-License-Identifier: Apache-2.0

// Command nodeagent is the node component: the daemon that serves CRI, CNI and
// CSI (run), and the operator's command line to it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "v0.1.0-dev" //nolint:gochecknoglobals // the linker's only way in

// Exit codes that scripts can trust.
const (
	exitFailure   = 1 // the command did not do what was asked
	exitUsage     = 2 // unknown command, flag or argument
	exitNoDaemon  = 3 // the daemon does not answer
	exitUnhealthy = 4 // the answer came, and it says that something is wrong
)

var (
	// errUsage: the command line is wrong.
	errUsage = errors.New("usage")
	// errUnhealthy: what was looked at is not well; it has been printed.
	errUnhealthy = errors.New("unhealthy")
)

func main() {
	os.Exit(execute(context.Background(), os.Args[1:]))
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string) int {
	root := newRoot() //nolint:contextcheck // cobra hands the context to the command
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.Is(err, errUnhealthy) {
		fmt.Fprintln(os.Stderr, "nodeagent:", err)
	}
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, api.ErrNoDaemon):
		return exitNoDaemon
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	default:
		return exitFailure
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeagent",
		Short: "The node component of Kubernetes: CRI, CNI and CSI in one daemon",
		Long: "nodeagent serves the CRI to the kubelet, is the node's CNI plugin with an eBPF data path,\n" +
			"and a CSI driver for local volumes.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the daemon does not answer, 4 something is unhealthy.",
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.PersistentFlags().String("api", api.DefaultSocket, "the daemon's local API socket")
	root.AddCommand(runCommand(), statusCommand(), podsCommand(), imagesCommand(), ipamCommand(), volumesCommand(),
		servicesCommand(), policyCommand(), conntrackCommand(), countersCommand(), flowsCommand(),
		doctorCommand(), gcCommand(), installCommand(), uninstallCommand(), configCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "nodeagent", version)
			return err
		},
	}
}

// noCommand refuses a word that names no command, and suggests near ones.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return fmt.Errorf("%w: unknown command %q%s", errUsage, args[0], hint)
}

// noArgs refuses arguments as wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: %s takes no argument, got %q", errUsage, cmd.CommandPath(), args[0])
	}
	return nil
}
