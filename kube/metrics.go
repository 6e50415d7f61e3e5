// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the room. Those that begin with kubeproxy_ have the names,
// labels and buckets of kube-proxy, so that dashboards and the SLO for network
// programming latency work unchanged; ip_family is "dual": both families are
// programmed in one write.
type metrics struct {
	watchErrors *prometheus.CounterVec
	batches     *prometheus.CounterVec
	duration    *prometheus.HistogramVec

	programming      prometheus.Observer
	syncDuration     prometheus.Observer
	lastSync         prometheus.Gauge
	lastQueued       prometheus.Gauge
	serviceChanges   prometheus.Counter
	endpointChanges  prometheus.Counter
	servicesPending  prometheus.Gauge
	endpointsPending prometheus.Gauge

	all []prometheus.Collector
}

func newMetrics() *metrics {
	m := &metrics{}
	m.watchErrors = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nodeagent_kube_watch_errors_total",
		Help: "Watches of the API server that ended with an error.",
	}, []string{"kind"}))
	m.batches = add(m, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "nodeagent_kube_batches_total",
		Help: "Batches of changes offered to a sink, by outcome.",
	}, []string{"sink", "outcome"}))
	m.duration = add(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "nodeagent_kube_batch_duration_seconds",
		Help:    "How long a sink took for a batch.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	}, []string{"sink"}))
	m.proxyMetrics()
	return m
}

func (m *metrics) proxyMetrics() {
	const subsystem = "kubeproxy"
	family := []string{"ip_family"}
	m.programming = add(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: subsystem, Name: "network_programming_duration_seconds",
		Help:    "In Cluster Network Programming Latency in seconds",
		Buckets: programmingBuckets(),
	}, family)).WithLabelValues("dual")
	m.syncDuration = add(m, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: subsystem, Name: "sync_proxy_rules_duration_seconds",
		Help:    "SyncProxyRules latency in seconds",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
	}, family)).WithLabelValues("dual")
	gauge := func(name, help string) prometheus.Gauge {
		return add(m, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Subsystem: subsystem, Name: name, Help: help,
		}, family)).WithLabelValues("dual")
	}
	m.lastSync = gauge("sync_proxy_rules_last_timestamp_seconds",
		"The last time proxy rules were successfully synced")
	m.lastQueued = gauge("sync_proxy_rules_last_queued_timestamp_seconds",
		"The last time a sync of proxy rules was queued")
	count := func(name, help string) prometheus.Counter {
		return add(m, prometheus.NewCounter(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}))
	}
	m.serviceChanges = count("sync_proxy_rules_service_changes_total",
		"Cumulative proxy rules Service changes")
	m.endpointChanges = count("sync_proxy_rules_endpoint_changes_total",
		"Cumulative proxy rules Endpoint changes")
	pending := func(name, help string) prometheus.Gauge {
		return add(m, prometheus.NewGauge(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help}))
	}
	m.servicesPending = pending("sync_proxy_rules_service_changes_pending",
		"Pending proxy rules Service changes")
	m.endpointsPending = pending("sync_proxy_rules_endpoint_changes_pending",
		"Pending proxy rules Endpoint changes")
}

// programmingBuckets are those of kube-proxy: fine up to a minute, coarse to
// five.
func programmingBuckets() []float64 {
	b := prometheus.LinearBuckets(0.25, 0.25, 2)
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

func add[C prometheus.Collector](m *metrics, c C) C {
	m.all = append(m.all, c)
	return c
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range m.all {
		if err := r.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register metric: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (m *metrics) batch(sink string, start time.Time, err error) {
	outcome := "taken"
	if err != nil {
		outcome = "refused"
	}
	m.batches.WithLabelValues(sink, outcome).Inc()
	m.duration.WithLabelValues(sink).Observe(time.Since(start).Seconds())
}
