// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/observe"
)

// recordView is one record of the conntrack table.
type recordView struct {
	Protocol string         `json:"protocol"`
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
	// ToSrc and ToDst are the flow as it goes on, when it is translated.
	ToSrc netip.AddrPort `json:"toSrc,omitzero"`
	ToDst netip.AddrPort `json:"toDst,omitzero"`
}

// countersView is the answer of GET /v1/counters.
type countersView struct {
	Maps    []observe.Fill `json:"maps"`
	Packets []packetView   `json:"packets"`
}

// packetView is what became of packets at one hook.
type packetView struct {
	Hook    string `json:"hook"`
	Class   string `json:"class"`
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// flushed is the answer of POST /v1/conntrack/flush.
type flushed struct {
	Records int `json:"records"`
}

// dataplaneRoutes are the calls about what the data path holds and does.
func dataplaneRoutes(d *dataplane.Dataplane) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/conntrack":        api.JSON(func(*http.Request) ([]recordView, error) { return viewFlows(d) }),
		"POST /v1/conntrack/flush": api.JSON(func(r *http.Request) (flushed, error) { return flushFlows(d, r.URL.Query().Get("addr")) }),
		"GET /v1/counters":         api.JSON(func(*http.Request) (countersView, error) { return viewCounters(d) }),
		"GET /v1/flows":            http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { streamFlows(d, w, r) }),
	}
}

func viewFlows(d *dataplane.Dataplane) ([]recordView, error) {
	out := []recordView{}
	err := d.Flows(func(f maps.Flow) bool {
		v := recordView{Protocol: protocol(f.Orig.Proto), Src: f.Orig.Src, Dst: f.Orig.Dst}
		if f.Other != f.Orig && f.Other.Src.IsValid() {
			v.ToSrc, v.ToDst = f.Other.Src, f.Other.Dst
		}
		out = append(out, v)
		return true
	})
	return out, err
}

// flushFlows forgets the flows of one address, or all of them when addr is "all".
func flushFlows(d *dataplane.Dataplane, addr string) (flushed, error) {
	match := func(maps.Flow) bool { return true }
	if addr != "all" {
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return flushed{}, fmt.Errorf("flush: %w", err)
		}
		match = func(f maps.Flow) bool {
			return slices.Contains([]netip.Addr{f.Orig.Src.Addr(), f.Orig.Dst.Addr(), f.Other.Src.Addr(), f.Other.Dst.Addr()}, a)
		}
	}
	n, err := d.FlushFlows(match)
	return flushed{n}, err
}

func viewCounters(d *dataplane.Dataplane) (v countersView, err error) {
	if v.Maps, err = d.Usage(); err != nil {
		return v, err
	}
	counters, err := d.Counters()
	for _, c := range counters {
		v.Packets = append(v.Packets, packetView{
			Hook: c.Hook, Class: fmt.Sprint(c.Reason.Class), Reason: c.Reason.Name, Packets: c.Packets, Bytes: c.Bytes,
		})
	}
	return v, err
}

// protocol names an IP protocol by its number.
func protocol(n uint8) string {
	switch n {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "icmp6"
	case 132:
		return "sctp"
	default:
		return strconv.Itoa(int(n))
	}
}

func countersCommand() *cobra.Command {
	return showCommand("counters", "Show how full the maps are and what became of packets", "/v1/counters", func(v countersView) *table {
		t := &table{header: []string{"MAP", "USED", "OF"}}
		for _, m := range v.Maps {
			t.add(m.Map, strconv.FormatUint(uint64(m.Used), 10), strconv.FormatUint(uint64(m.Entries), 10))
		}
		t.add()
		t.add("HOOK", "WHAT", "REASON", "PACKETS", "BYTES")
		for _, p := range v.Packets {
			t.add(p.Hook, p.Class, p.Reason, strconv.FormatUint(p.Packets, 10), strconv.FormatUint(p.Bytes, 10))
		}
		return t
	})
}

func conntrackCommand() *cobra.Command {
	cmd := showCommand("conntrack", "Show the flows that the data path knows", "/v1/conntrack", func(flows []recordView) *table {
		t := &table{header: []string{"PROTOCOL", "SOURCE", "DESTINATION", "GOES ON AS"}}
		for _, f := range flows {
			on := ""
			if f.ToSrc.IsValid() {
				on = f.ToSrc.String() + " -> " + f.ToDst.String()
			}
			t.add(f.Protocol, f.Src.String(), f.Dst.String(), on)
		}
		return t
	})
	cmd.AddCommand(&cobra.Command{
		Use: "flush ADDRESS|all", Short: "Forget the flows of an address; translated connections break",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: %s takes an address, or all", errUsage, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var answer flushed
			if err := client(cmd).Post(cmd.Context(), "/v1/conntrack/flush?addr="+url.QueryEscape(args[0]), nil, &answer); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), answer.Records, "records forgotten")
			return err
		},
	})
	return cmd
}
