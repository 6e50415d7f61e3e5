// SPDX-License-Identifier: Apache-2.0

// Package observe brings out of the kernel what the data path did: counters of
// every reason, events of what was dropped, and how full the maps are. It only
// reads.
package observe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// Class says what a reason did to a packet.
type Class string

// Classes of reasons, by ranges of their numbers (bpf/lib/reason.h).
const (
	Forwarded Class = "forwarded"
	Passed    Class = "passed"
	Dropped   Class = "dropped"
)

const (
	firstPass = bpf.DatapathReasonPASS_NOT_IP
	firstDrop = bpf.DatapathReasonDROP_TRUNCATED
)

// Reason is what became of a packet.
type Reason struct {
	Class Class
	// Name is constant: it is a label of metrics.
	Name string
	// Refused: it did not get through, dropped or answered with an error.
	Refused bool
}

// Verdict is "dropped", "rejected", "forwarded" or "passed": to the node or its kernel.
func (r Reason) Verdict() string {
	if r.Refused && r.Class != Dropped {
		return "rejected"
	}
	return string(r.Class)
}

// ReasonOf names a reason; those that this build does not know keep their number.
func ReasonOf(r bpf.DatapathReason) Reason {
	out := Reason{Class: Forwarded, Name: reasonNames()[r]}
	switch {
	case r >= firstDrop:
		out.Class, out.Refused = Dropped, true
	case r == bpf.DatapathReasonFWD_REJECT || r == bpf.DatapathReasonFWD_TOO_BIG:
		out.Refused = true
	case r >= firstPass:
		out.Class = Passed
	}
	if out.Name == "" {
		out.Name = fmt.Sprintf("reason_%d", r)
	}
	return out
}

// Known says whether a name is that of a reason.
func Known(name string) bool {
	for _, n := range reasonNames() {
		if n == name {
			return true
		}
	}
	return false
}

func reasonNames() map[bpf.DatapathReason]string {
	return map[bpf.DatapathReason]string{
		bpf.DatapathReasonFWD_LOCAL:       "local",
		bpf.DatapathReasonFWD_NATIVE:      "native",
		bpf.DatapathReasonFWD_TUNNEL:      "tunnel",
		bpf.DatapathReasonFWD_WORLD:       "world",
		bpf.DatapathReasonFWD_REJECT:      "rejected",
		bpf.DatapathReasonFWD_DSR:         "direct_return",
		bpf.DatapathReasonFWD_XDP:         "xdp",
		bpf.DatapathReasonFWD_TOO_BIG:     "rejected_too_big",
		bpf.DatapathReasonPASS_NOT_IP:     "not_ip",
		bpf.DatapathReasonPASS_NEIGHBOUR:  "neighbour_discovery",
		bpf.DatapathReasonPASS_HOST:       "host",
		bpf.DatapathReasonPASS_ROUTE:      "kernel_route",
		bpf.DatapathReasonPASS_TTL:        "ttl_exceeded",
		bpf.DatapathReasonPASS_TOO_BIG:    "too_big",
		bpf.DatapathReasonPASS_UNKNOWN:    "unknown_destination",
		bpf.DatapathReasonDROP_TRUNCATED:  "truncated",
		bpf.DatapathReasonDROP_MALFORMED:  "malformed",
		bpf.DatapathReasonDROP_SPOOFED:    "spoofed",
		bpf.DatapathReasonDROP_MULTICAST:  "multicast",
		bpf.DatapathReasonDROP_CONNTRACK:  "conntrack_write",
		bpf.DatapathReasonDROP_SNAT_PORTS: "snat_ports_exhausted",
		bpf.DatapathReasonDROP_REWRITE:    "rewrite_failed",
		bpf.DatapathReasonDROP_BACKEND:    "no_backend",
		bpf.DatapathReasonDROP_NO_REJECT:  "reject_failed",
		bpf.DatapathReasonDROP_TUNNEL:     "tunnel_spoofed",
		bpf.DatapathReasonDROP_REDIRECT:   "redirect_failed",
		bpf.DatapathReasonDROP_RATE:       "bandwidth",
		bpf.DatapathReasonDROP_SOURCE:     "source_range",
		bpf.DatapathReasonDROP_RELATED:    "icmp_of_unknown_flow",
		bpf.DatapathReasonDROP_EGRESS:     "policy_egress",
		bpf.DatapathReasonDROP_INGRESS:    "policy_ingress",
	}
}

// HookOf names where a packet met the data path.
func HookOf(h bpf.DatapathHook) string {
	switch h {
	case bpf.DatapathHookHOOK_POD:
		return "from_pod"
	case bpf.DatapathHookHOOK_NET:
		return "from_uplink"
	case bpf.DatapathHookHOOK_TUN:
		return "from_overlay"
	case bpf.DatapathHookHOOK_TOPOD:
		return "to_pod"
	case bpf.DatapathHookHOOK_TONET:
		return "to_uplink"
	default:
		return fmt.Sprintf("hook_%d", h)
	}
}

// Counter is how often one reason applied at one hook, since the maps were made.
type Counter struct {
	Hook           string
	Reason         Reason
	Packets, Bytes uint64
}

// Counters reads the counters that are not zero, in the order of their numbers.
func Counters(m *ebpf.Map) ([]Counter, error) {
	var out []Counter
	for h := range bpf.DatapathHookHOOK_MAX {
		for r := range bpf.DatapathReasonREASON_MAX {
			c, err := CounterOf(m, h, r)
			if err != nil {
				return nil, err
			}
			if c.Packets > 0 {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// CounterOf reads one counter, which may be zero.
func CounterOf(m *ebpf.Map, h bpf.DatapathHook, r bpf.DatapathReason) (Counter, error) {
	idx := uint32(h)*uint32(bpf.DatapathReasonREASON_MAX) + uint32(r)
	var per []bpf.DatapathCounter
	if err := m.Lookup(idx, &per); err != nil {
		return Counter{}, fmt.Errorf("read counter %d: %w", idx, err)
	}
	c := Counter{Hook: HookOf(h), Reason: ReasonOf(r)}
	for _, v := range per {
		c.Packets += v.Packets
		c.Bytes += v.Bytes
	}
	return c, nil
}

// Event is one packet that was refused, or the first of a flow when those are
// asked for.
type Event struct {
	Time   time.Time
	Hook   string
	Reason Reason
	// Flow is the packet as it came, To as it went on or would have.
	Flow, To maps.Tuple
	IfIndex  int
	Service  uint32
	Len      int
}

// Events calls fn for every event until ctx ends. Events that nobody reads are
// lost, packets are not. A second reader would take events from the first.
func Events(ctx context.Context, m *ebpf.Map, fn func(Event)) error {
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { r.Close() }) //nolint:errcheck // Read says it
	defer stop()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return errors.Join(fmt.Errorf("read event: %w", err), r.Close())
		}
		e, err := decode(rec.RawSample)
		if err != nil {
			return errors.Join(err, r.Close())
		}
		fn(e)
	}
}

// Fill is how full a map is.
type Fill struct {
	Map           string
	Used, Entries uint32
	// Grown is how often it was made larger since the daemon's start.
	Grown uint32
}
