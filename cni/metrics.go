// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the pod network.
type metrics struct {
	verbs *prometheus.HistogramVec
	addrs *prometheus.Desc
	state *prometheus.Desc
	net   *Network
}

var _ prometheus.Collector = (*metrics)(nil)

func newMetrics(n *Network) *metrics {
	return &metrics{
		net: n,
		verbs: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "nodeagent_network_verb_seconds",
			Help:    "Time that a verb on an attachment took, by outcome (ok, error).",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2.5, 12),
		}, []string{"verb", "outcome"}),
		addrs: prometheus.NewDesc("nodeagent_ipam_addresses",
			"Addresses of a range: in use, resting after release, or all there are (total).",
			[]string{"pool", "cidr", "state"}, nil),
		state: prometheus.NewDesc("nodeagent_network_attachments",
			"Attachments by state (pending, warm, ready, deleting).", []string{"state"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.verbs.Describe(ch)
	ch <- m.addrs
	ch <- m.state
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.verbs.Collect(ch)
	for _, u := range m.net.Usage() {
		cidr := u.Prefix.String()
		for state, v := range map[string]uint64{"used": u.Used, "resting": u.Resting, "total": u.Total} {
			ch <- prometheus.MustNewConstMetric(m.addrs, prometheus.GaugeValue, float64(v), u.Pool, cidr, state)
		}
	}
	count := map[state]int{statePending: 0, stateWarm: 0, stateReady: 0, stateDeleting: 0}
	for _, rec := range m.net.records.list() {
		count[rec.State]++
	}
	for s, v := range count {
		ch <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, float64(v), string(s))
	}
}

// observe records a verb that began at a time.
func (m *metrics) observe(verb string, begin time.Time, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.verbs.WithLabelValues(verb, outcome).Observe(time.Since(begin).Seconds())
}
