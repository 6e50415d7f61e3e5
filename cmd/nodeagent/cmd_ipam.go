// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
)

func ipamCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ipam",
		Short: "Show the ranges of pod addresses and how full they are",
		Args:  noArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		answer, err := getIPAM(cmd)
		if err != nil {
			return err
		}
		t := &table{header: []string{"POOL", "CIDR", "USED", "RESTING", "TOTAL", "USE"}}
		for _, r := range answer.Ranges {
			t.add(r.Pool, r.Prefix.String(), strconv.FormatUint(r.Used, 10), strconv.FormatUint(r.Resting, 10),
				total(r.Total), percent(r.Used, r.Total))
		}
		return render(cmd.OutOrStdout(), *format, answer.Ranges, t)
	}
	cmd.AddCommand(ipamLeasesCommand(), ipamCheckCommand())
	return cmd
}

func ipamLeasesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leases",
		Short: "Show every pod address and who has it",
		Args:  noArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		answer, err := getIPAM(cmd)
		if err != nil {
			return err
		}
		t := &table{header: []string{"ADDRESS", "POOL", "POD", "STATE", "INTERFACE", "AGE", "ATTACHMENT"}}
		for _, l := range answer.Leases {
			pod := "-"
			if l.Name != "" {
				pod = l.Namespace + "/" + l.Name
			}
			age := time.Since(l.Since).Round(time.Second).String()
			t.add(l.Addr.String(), l.Pool, pod, l.State, l.Interface, age, l.Owner)
		}
		return render(cmd.OutOrStdout(), *format, answer.Leases, t)
	}
	return cmd
}

func ipamCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare every pod's addresses, links and routes with the records",
		Args:  noArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var answer api.VerifyAnswer
		if err := client(cmd).Get(cmd.Context(), "/v1/ipam/check", &answer); err != nil {
			return err
		}
		t := &table{}
		for _, p := range answer.Problems {
			for _, fault := range p.Faults {
				t.add(p.Subject, fault)
			}
		}
		if len(answer.Problems) == 0 {
			t.add("everything agrees")
		}
		if err := render(cmd.OutOrStdout(), *format, answer, t); err != nil {
			return err
		}
		if len(answer.Problems) > 0 {
			return errUnhealthy
		}
		return nil
	}
	return cmd
}

func getIPAM(cmd *cobra.Command) (api.IPAM, error) {
	var answer api.IPAM
	err := client(cmd).Get(cmd.Context(), "/v1/ipam", &answer)
	return answer, err
}

// manyAddrs is from where a range is as good as endless.
const manyAddrs = 1 << 40

func total(n uint64) string {
	if n >= manyAddrs {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func percent(used, total uint64) string {
	if total == 0 || total >= manyAddrs {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(used)/float64(total))
}
