// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
)

// client returns a client for the daemon that --api names.
func client(cmd *cobra.Command) *api.Client {
	return api.NewClient(cmd.Flag("api").Value.String())
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether the daemon serves, part by part",
		Args:  noArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s status
		if err := client(cmd).Get(cmd.Context(), "/v1/status", &s); err != nil {
			return err
		}
		healthy := true
		t := &table{}
		t.add("Version:", s.Version)
		t.add("Node:", s.Node)
		t.add("Process:", strconv.Itoa(s.PID)+", up "+time.Since(s.Started).Round(time.Second).String())
		for _, c := range s.Conditions {
			state := "serving"
			if !c.Ready {
				healthy, state = false, "NOT SERVING: "+c.Message
			}
			t.add(c.Part+":", state)
		}
		if p := s.NRI; p != nil && (p.Plugins > 0 || len(p.Failures) > 0) {
			t.add("nri:", fmt.Sprintf("%d plugins connected, %d failed", p.Plugins, len(p.Failures)))
		}
		if k := s.Kubernetes; k != nil {
			t.add("kubernetes:", "follows "+k.Source.From)
			for _, f := range k.Source.Faults {
				t.add("", "but: "+f)
			}
		}
		for _, a := range s.XDP {
			t.add("xdp at "+a.IfName+":", a.String())
		}
		if err := render(cmd.OutOrStdout(), *format, s, t); err != nil {
			return err
		}
		if !healthy {
			return errUnhealthy
		}
		return nil
	}
	return cmd
}
