// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/observe"
)

// Counters are what became of packets, by hook and reason, since the maps were
// made: a restart does not reset them.
func (d *Dataplane) Counters() ([]observe.Counter, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return nil, ErrNotStarted
	}
	return observe.Counters(d.kernel.Counters)
}

// Usage says how full the maps are. That of conntrack is as of the last sweep.
func (d *Dataplane) Usage() ([]observe.Fill, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return nil, ErrNotStarted
	}
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	out := []observe.Fill{
		{Map: "conntrack", Used: d.flowCount.Load(), Entries: d.flows.Size()},
		{Map: "services", Used: uint32(len(d.table.fronts) + len(d.table.left)), Entries: d.kernel.Svc.MaxEntries(), Grown: d.grown["svc"]},
		{Map: "backends", Used: d.table.slots.used, Entries: d.kernel.Be.MaxEntries(), Grown: d.grown["be"]},
		{Map: "affinity", Used: d.affinityCount.Load(), Entries: d.kernel.Aff.MaxEntries(), Grown: d.grown["aff"]},
	}
	eps, err := d.eps.All()
	if err != nil {
		return nil, err
	}
	routes, err := d.routes.All()
	if err != nil {
		return nil, err
	}
	return append(out,
		observe.Fill{Map: "endpoints", Used: uint32(len(eps)), Entries: d.kernel.Eps.MaxEntries()},
		observe.Fill{Map: "routes", Used: uint32(len(routes)), Entries: d.kernel.Routes.MaxEntries()},
		observe.Fill{Map: "identities", Used: uint32(len(d.policies.written.Identities)), Entries: d.kernel.Identities.MaxEntries()},
		observe.Fill{Map: "rules", Used: uint32(len(d.policies.written.Rules)), Entries: d.kernel.Rules.MaxEntries()},
	), nil
}

// Flows calls fn for every record of the conntrack table until it returns
// false; a translated flow has two.
func (d *Dataplane) Flows(fn func(maps.Flow) bool) error {
	d.mu.Lock()
	if !d.started {
		d.mu.Unlock()
		return ErrNotStarted
	}
	flows := d.flows
	d.mu.Unlock()
	return flows.Each(fn)
}

// FlushFlows forgets the flows that match and returns how many records that
// were. Connections that are translated break.
func (d *Dataplane) FlushFlows(match func(maps.Flow) bool) (int, error) {
	var gone []maps.Flow
	err := d.Flows(func(f maps.Flow) bool {
		if match(f) {
			gone = append(gone, f)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	return len(gone), d.flows.Delete(gone)
}

// Collector offers counters and usage as metrics.
func (d *Dataplane) Collector() prometheus.Collector {
	labels := []string{"hook", "class", "reason"}
	return &collector{
		d:        d,
		packets:  prometheus.NewDesc("nodeagent_dataplane_packets_total", "Packets by hook and what became of them.", labels, nil),
		bytes:    prometheus.NewDesc("nodeagent_dataplane_bytes_total", "Bytes by hook and what became of them.", labels, nil),
		used:     prometheus.NewDesc("nodeagent_dataplane_map_entries", "Entries in use.", []string{"map"}, nil),
		capacity: prometheus.NewDesc("nodeagent_dataplane_map_capacity", "Entries that a map can hold.", []string{"map"}, nil),
		evicted: prometheus.NewDesc("nodeagent_dataplane_flows_evicted_total",
			"Records of flows that were removed before their time because the table was nearly full.", nil, nil),
		grown: prometheus.NewDesc("nodeagent_dataplane_map_grown_total", "How often a map was made larger while it was in use.", []string{"map"}, nil),
	}
}

type collector struct {
	d                                              *Dataplane
	packets, bytes, used, capacity, grown, evicted *prometheus.Desc
}

var _ prometheus.Collector = (*collector)(nil)

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.packets
	ch <- c.bytes
	ch <- c.used
	ch <- c.capacity
	ch <- c.grown
	ch <- c.evicted
}

// Collect reports nothing while the data path is not started.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counters, err := c.d.Counters()
	if err != nil {
		return
	}
	for _, v := range counters {
		labels := []string{v.Hook, string(v.Reason.Class), v.Reason.Name}
		ch <- prometheus.MustNewConstMetric(c.packets, prometheus.CounterValue, float64(v.Packets), labels...)
		ch <- prometheus.MustNewConstMetric(c.bytes, prometheus.CounterValue, float64(v.Bytes), labels...)
	}
	ch <- prometheus.MustNewConstMetric(c.evicted, prometheus.CounterValue, float64(c.d.flowsEvicted.Load()))
	usage, err := c.d.Usage()
	if err != nil {
		return
	}
	for _, v := range usage {
		ch <- prometheus.MustNewConstMetric(c.used, prometheus.GaugeValue, float64(v.Used), v.Map)
		ch <- prometheus.MustNewConstMetric(c.capacity, prometheus.GaugeValue, float64(v.Entries), v.Map)
		ch <- prometheus.MustNewConstMetric(c.grown, prometheus.CounterValue, float64(v.Grown), v.Map)
	}
}
