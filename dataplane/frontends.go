// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// Frontend is one frontend as the kernel has it.
type Frontend struct {
	service.Frontend
	// Owner is "service namespace/name" or "endpoint id"; empty: an earlier
	// daemon's, and nobody has told of it yet.
	Owner    string
	ID       uint32
	Backends []netip.AddrPort
	Affinity time.Duration
	// State is "serves", or what becomes of traffic without a backend:
	// "rejects" or "drops".
	State string
	// Local backends only, chosen by Maglev, limited to source ranges.
	Local, Maglev, Ranges bool
	// DSR: a backend of another node answers clients itself.
	DSR bool
	// Stat is what the port of the service carried by all its frontends of the
	// family; nil: nothing yet, or it is not counted.
	Stat *maps.Stat
}

// Frontends returns the frontends in the data path, in no particular order.
func (d *Dataplane) Frontends() ([]Frontend, error) {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return nil, ErrNotStarted
	}
	stats, err := d.stats.All()
	if err != nil {
		return nil, err
	}
	var out []Frontend
	for owner, o := range d.table.owners {
		for _, key := range o.fronts {
			f := d.table.fronts[key]
			if f == nil || f.owner != owner {
				continue
			}
			front := d.table.describe(owner, o, key, f)
			if s, ok := stats[front.ID]; ok {
				front.Stat = &s
			}
			out = append(out, front)
		}
	}
	for key, v := range d.table.left {
		out = append(out, d.table.describeLeft(key, v))
	}
	return out, nil
}

// frontendFrom is what the kernel has of a frontend, but for its backends.
func frontendFrom(key maps.ServiceKey, v maps.ServiceValue) Frontend {
	has := func(flag bpf.DatapathSvcFlags) bool { return v.Flags&uint16(flag) != 0 }
	return Frontend{
		ID:       v.Id,
		Frontend: frontendOf(key),
		Affinity: maps.Duration(v.Affinity),
		Maglev:   has(bpf.DatapathSvcFlagsSVC_MAGLEV),
		DSR:      has(bpf.DatapathSvcFlagsSVC_DSR),
		Ranges:   has(bpf.DatapathSvcFlagsSVC_RANGES),
		Local:    key.Scope == uint8(service.Outside) && !has(bpf.DatapathSvcFlagsSVC_SNAT),
		State:    stateOf(v),
	}
}

// describeLeft tells of a frontend that an earlier daemon wrote; the rows of a
// Maglev table name each backend many times.
func (t *table) describeLeft(key maps.ServiceKey, v maps.ServiceValue) Frontend {
	out := frontendFrom(key, v)
	seen := map[netip.AddrPort]bool{}
	for i := v.Base; i < v.Base+v.Count && i < uint32(len(t.leftBE)); i++ {
		b := netip.AddrPortFrom(maps.ToAddr(t.leftBE[i].Addr), maps.Port(t.leftBE[i].Port))
		if !seen[b] {
			seen[b] = true
			out.Backends = append(out.Backends, b)
		}
	}
	return out
}

func (t *table) describe(owner string, o *owned, key maps.ServiceKey, f *front) Frontend {
	out := frontendFrom(key, f.value)
	out.Owner = owner
	for _, s := range o.slices {
		if s.base != f.value.Base || f.value.Count == 0 {
			continue
		}
		for _, b := range s.backends {
			out.Backends = append(out.Backends, netip.AddrPortFrom(b.Addr, b.Port))
		}
	}
	return out
}

func stateOf(v maps.ServiceValue) string {
	switch {
	case v.Count > 0:
		return "serves"
	case v.Flags&uint16(bpf.DatapathSvcFlagsSVC_DROP) != 0:
		return "drops"
	default:
		return "rejects"
	}
}

// ServiceStat is what one port of a service carried.
type ServiceStat struct {
	// Owner is "service namespace/name" or "endpoint id"; empty: all that have
	// no counters of their own.
	Owner string
	// Port is the port's name, or the host port's number.
	Port   string
	Proto  uint8
	Family string
	maps.Stat
}

// ServiceStats returns the ports of services that carried something.
func (d *Dataplane) ServiceStats() ([]ServiceStat, error) {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return nil, ErrNotStarted
	}
	stats, err := d.stats.All()
	if err != nil {
		return nil, err
	}
	out := []ServiceStat{{Stat: stats[maps.Others]}}
	for owner, o := range d.table.owners {
		for k, id := range o.ids {
			s, ok := stats[id]
			if !ok {
				continue
			}
			family := "ipv6"
			if k.v4 {
				family = "ipv4"
			}
			out = append(out, ServiceStat{owner, k.port, k.proto, family, s})
		}
	}
	return out, nil
}

// ServiceCollector offers the statistics of services as metrics.
func (d *Dataplane) ServiceCollector() prometheus.Collector {
	desc := func(name, help string, more ...string) *prometheus.Desc {
		labels := slices.Concat([]string{"namespace", "service", "port", "protocol", "ip_family"}, more)
		return prometheus.NewDesc("nodeagent_service_"+name, help, labels, nil)
	}
	return &serviceCollector{
		d:           d,
		connections: desc("connections_total", "Connections, and flows of other protocols, that got a backend."),
		refused:     desc("refused_total", "Connections that got none: no endpoints, or their source is not admitted."),
		bytes: desc("bytes_total", "Bytes to (in) and from (out) backends; of connections that are translated at the socket when they end.",
			"direction"),
	}
}

type serviceCollector struct {
	d                           *Dataplane
	connections, refused, bytes *prometheus.Desc
}

var _ prometheus.Collector = (*serviceCollector)(nil)

func (c *serviceCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.connections
	ch <- c.refused
	ch <- c.bytes
}

// Collect reports nothing while the data path is not started, or does not count.
func (c *serviceCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.d.cfg.Services || !c.d.cfg.ServiceOptions.Metrics {
		return
	}
	stats, err := c.d.ServiceStats()
	if err != nil {
		return
	}
	for _, s := range stats {
		namespace, name := "", s.Owner
		if owner, ok := strings.CutPrefix(s.Owner, "service "); ok {
			namespace, name, _ = strings.Cut(owner, "/")
		}
		labels := []string{namespace, name, s.Port, protoName(s.Proto), s.Family}
		count := func(desc *prometheus.Desc, v uint64, more ...string) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), slices.Concat(labels, more)...)
		}
		count(c.connections, s.Connections)
		count(c.refused, s.Refused)
		count(c.bytes, s.BytesIn, "in")
		count(c.bytes, s.BytesOut, "out")
	}
}
