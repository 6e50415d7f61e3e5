// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni/ipam"
)

func ipamCommand() *cobra.Command {
	cmd := showPartCommand("ipam", "Show the ranges of pod addresses and how full they are", ipamPath,
		func(a api.IPAM) (any, *table) { return a.Ranges, rangesTable(a.Ranges) })
	cmd.AddCommand(
		showPartCommand("leases", "Show every pod address and who has it", ipamPath,
			func(a api.IPAM) (any, *table) { return a.Leases, leasesTable(a.Leases) }),
		ipamCheckCommand())
	return cmd
}

const ipamPath = "/v1/ipam"

func rangesTable(ranges []ipam.Usage) *table {
	t := &table{header: []string{"POOL", "CIDR", "USED", "RESTING", "TOTAL", "USE"}}
	for _, r := range ranges {
		t.add(r.Pool, r.Prefix.String(), strconv.FormatUint(r.Used, 10), strconv.FormatUint(r.Resting, 10),
			total(r.Total), percent(r.Used, r.Total))
	}
	return t
}

func leasesTable(leases []api.Lease) *table {
	t := &table{header: []string{"ADDRESS", "POOL", "POD", "STATE", "INTERFACE", "AGE", "ATTACHMENT"}}
	for _, l := range leases {
		pod := "-"
		if l.Name != "" {
			pod = l.Namespace + "/" + l.Name
		}
		t.add(l.Addr.String(), l.Pool, pod, l.State, l.Interface, age(l.Since), l.Owner)
	}
	return t
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
