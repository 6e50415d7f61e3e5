// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and show the configuration"}
	check := &cobra.Command{
		Use:   "check",
		Short: "Report every fault of the configuration file, with its line",
		Args:  noArgs,
	}
	file := configFlag(check)
	check.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := config.Load(*file); err != nil {
			return err
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: no faults\n", *file)
		return err
	}
	defaults := &cobra.Command{
		Use:   "default",
		Short: "Print the default configuration, every field with its value",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := yaml.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent(2)
			return enc.Encode(config.Default())
		},
	}
	cmd.AddCommand(check, defaults)
	return cmd
}

func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", config.DefaultPath, "the configuration file")
}
