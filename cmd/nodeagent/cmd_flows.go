// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flowsOptions are the flags of flows that are not part of its filter.
type flowsOptions struct {
	format string
	limit  int
	during time.Duration
}

func flowsCommand() *cobra.Command {
	o := flowsOptions{}
	cmd := &cobra.Command{
		Use: "flows", Short: "Show packets that are dropped or rejected, and new flows, as it happens", Args: noArgs,
		Long: "Shows packets that are dropped or rejected as it happens, with the reason, the pods at both ends and the network\n" +
			"policies that denied them; with --all also the first packet of each new flow, and which policies allowed it.\n" +
			"Filters are applied by the daemon; each has to fit either end of a flow, before or after its translation.",
		Example: "  nodeagent flows --pod shop/db-0\n  nodeagent flows --all --port 53 --for 10s\n" +
			"  nodeagent flows --reason policy_ingress --reason policy_egress -o json",
	}
	f := cmd.Flags()
	f.Bool("all", false, "new flows, too")
	f.String("pod", "", "of one pod: NAMESPACE/NAME")
	f.StringP("namespace", "n", "", "of the pods of a namespace")
	f.String("service", "", "to a service: NAMESPACE/NAME, where packets are translated")
	f.String("address", "", "from or to an address or a range")
	f.String("port", "", "from or to a port")
	f.String("protocol", "", "tcp, udp, sctp, icmp, icmp6 or a number")
	f.StringArray("reason", nil, "for a reason, as nodeagent counters names them (repeat)")
	f.IntVar(&o.limit, "limit", 0, "end after so many lines; 0: never")
	f.DurationVar(&o.during, "for", 0, "end after this time; 0: never")
	f.StringVarP(&o.format, "output", "o", "table", "table or json, one object a line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := flowQuery(cmd.Flags())
		if _, err := parseFlowFilter(q); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		if o.format != "table" && o.format != "json" || o.limit < 0 || o.during < 0 {
			return fmt.Errorf("%w: --output is table or json, --limit and --for are not negative", errUsage)
		}
		return showFlows(cmd, q, o)
	}
	return cmd
}

// flowQuery is the filter that the flags say, as GET /v1/flows takes it.
func flowQuery(f *pflag.FlagSet) url.Values {
	q := url.Values{}
	for _, name := range flowParams() {
		flag := f.Lookup(name)
		if !flag.Changed {
			continue
		}
		if many, ok := flag.Value.(pflag.SliceValue); ok {
			q[name] = many.GetSlice()
		} else {
			q.Set(name, flag.Value.String())
		}
	}
	return q
}

func showFlows(cmd *cobra.Command, q url.Values, o flowsOptions) (retErr error) {
	ctx := cmd.Context()
	if o.during > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.during)
		defer cancel()
	}
	body, err := client(cmd).Stream(ctx, "/v1/flows?"+q.Encode())
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, body.Close()) }()
	out := cmd.OutOrStdout()
	if o.format == "table" {
		if _, err := fmt.Fprintf(out, flowLine, "TIME", "VERDICT", "REASON", "PROTOCOL", "FLOW"); err != nil {
			return err
		}
	}
	lines := json.NewDecoder(body)
	for n := 0; o.limit == 0 || n < o.limit; n++ {
		var v flowView
		err := lines.Decode(&v)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF):
			return errors.New("the daemon ended the stream")
		case err != nil:
			return fmt.Errorf("read flows: %w", err)
		case v.Error != "":
			return errors.New(v.Error)
		}
		if err := writeFlow(out, o.format, v); err != nil {
			return err
		}
	}
	return nil
}

const flowLine = "%-12s  %-9s  %-16s  %-8s  %s\n"

func writeFlow(out io.Writer, format string, v flowView) error {
	if format == "json" {
		return json.NewEncoder(out).Encode(v)
	}
	_, err := fmt.Fprintf(out, flowLine, v.Time.Local().Format("15:04:05.000"), v.Verdict, v.Reason, v.Protocol, v.story())
	return err
}

// story is a flow as people read it.
func (v flowView) story() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s", v.Src, v.Dst)
	if v.Service != "" {
		fmt.Fprintf(&b, " (service %s)", v.Service)
	}
	if v.ToDst != nil {
		fmt.Fprintf(&b, " => %s", v.ToDst)
	}
	if v.ToSrc != nil {
		fmt.Fprintf(&b, ", as %s", v.ToSrc)
	}
	fmt.Fprintf(&b, ", %s, %d bytes", v.Hook, v.Bytes)
	if len(v.Policies) > 0 {
		by := "allowed by "
		if v.Verdict == "dropped" {
			by = "isolated by "
		}
		b.WriteString(", " + by + strings.Join(v.Policies, ", "))
	}
	if v.Lost > 0 {
		fmt.Fprintf(&b, " [%d events before it were lost]", v.Lost)
	}
	return b.String()
}
