// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/observe"
)

// flowView is one line of GET /v1/flows: a packet that was refused, or the
// first one of a flow.
type flowView struct {
	Time time.Time `json:"time"`
	// Verdict is "dropped", "rejected", "forwarded" or "passed" (to the node or
	// its kernel).
	Verdict  string  `json:"verdict"`
	Reason   string  `json:"reason"`
	Hook     string  `json:"hook"`
	Protocol string  `json:"protocol"`
	Src      flowEnd `json:"src"`
	Dst      flowEnd `json:"dst"`
	// ToSrc and ToDst are the ends as they go on, when it is translated.
	ToSrc *flowEnd `json:"toSrc,omitempty"`
	ToDst *flowEnd `json:"toDst,omitempty"`
	// Service is the one that was asked, NAMESPACE/NAME, where packets are translated.
	Service string `json:"service,omitempty"`
	// Policies are the network policies that denied it, or else allowed it.
	Policies []string `json:"policies,omitempty"`
	Bytes    int      `json:"bytes"`
	// Lost is how many events before this one could not be told in time.
	Lost int `json:"lost,omitempty"`
	// Error ends the stream.
	Error string `json:"error,omitempty"`
}

// flowEnd is one end of a flow; Name is a pod's NAMESPACE/NAME, or says what
// else is known of the address.
type flowEnd struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
	Name string     `json:"name,omitempty"`
}

func (e flowEnd) String() string {
	s := e.Addr.String()
	if e.Port != 0 {
		s = netip.AddrPortFrom(e.Addr, e.Port).String()
	}
	if e.Name != "" {
		s = e.Name + " " + s
	}
	return s
}

// namesFor is how old the names may be that events are told with.
const namesFor = time.Second

// flowTeller makes views of events.
type flowTeller struct {
	d     *dataplane.Dataplane
	names dataplane.Directory
	at    time.Time
	// said are the policies of flows that were looked at since.
	said map[observe.Event][]string
}

// fresh looks at the names again when they are too old.
func (t *flowTeller) fresh(now time.Time) {
	if now.Sub(t.at) > namesFor {
		t.names, t.at, t.said = t.d.Directory(), now, map[observe.Event][]string{}
	}
}

func (t *flowTeller) end(a netip.AddrPort) flowEnd {
	return flowEnd{Addr: a.Addr(), Port: a.Port(), Name: t.names.Addr(a.Addr())}
}

func (t *flowTeller) view(e observe.Event, lost int) flowView {
	t.fresh(time.Now())
	v := flowView{
		Time: e.Time, Verdict: e.Reason.Verdict(), Reason: e.Reason.Name, Hook: e.Hook, Protocol: protocol(e.Flow.Proto),
		Src: t.end(e.Flow.Src), Dst: t.end(e.Flow.Dst), Service: t.names.Service(e.Service), Bytes: e.Len, Lost: lost,
	}
	if e.To.Src != e.Flow.Src {
		v.ToSrc = new(t.end(e.To.Src))
	}
	if e.To.Dst != e.Flow.Dst {
		v.ToDst = new(t.end(e.To.Dst))
	}
	if t.names.Policies {
		v.Policies = t.policies(e)
	}
	return v
}

// policies are those that denied a flow, or that allowed it. Each flow is
// looked up once in a while: who is denied tries again.
func (t *flowTeller) policies(e observe.Event) []string {
	key := observe.Event{Reason: e.Reason, Flow: e.Flow, To: e.To}
	if names, ok := t.said[key]; ok {
		return names
	}
	x := t.d.ExplainPolicy(e.Flow.Src.Addr(), e.To.Dst.Addr(), e.To.Proto, e.To.Dst.Port())
	var names []string
	switch e.Reason.Name {
	case "policy_egress":
		names = x.Egress.Isolating
	case "policy_ingress":
		names = x.Ingress.Isolating
	default:
		if !e.Reason.Refused && x.Allowed {
			names = slices.Concat(x.Egress.Allowing, x.Ingress.Allowing)
		}
	}
	t.said[key] = names
	return names
}

// streamFlows writes a line of JSON for every event that the request asks for
// until the client leaves.
func streamFlows(d *dataplane.Dataplane, w http.ResponseWriter, r *http.Request) {
	filter, err := parseFlowFilter(r.URL.Query())
	if err != nil {
		api.WriteError(w, http.StatusBadRequest, err)
		return
	}
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	_ = out.Flush()
	lines := json.NewEncoder(w)
	teller := &flowTeller{d: d}
	missed := 0
	err = d.Events(r.Context(), filter.all, func(e observe.Event, lost int) {
		missed += lost
		v := teller.view(e, missed)
		if !filter.admits(v) {
			return
		}
		missed = 0
		_ = lines.Encode(v)
		_ = out.Flush()
	})
	if err != nil && r.Context().Err() == nil {
		_ = lines.Encode(flowView{Error: err.Error()})
		_ = out.Flush()
	}
}

var errFlowFilter = errors.New("flows")

func flowFault(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errFlowFilter, fmt.Errorf(format, args...))
}
