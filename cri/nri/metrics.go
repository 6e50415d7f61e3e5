// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics tell what plugins cost and how often they fail.
type metrics struct {
	connected *atomic.Int64
	requests  *prometheus.HistogramVec
	failures  *prometheus.CounterVec

	// mu guards failed: how often each plugin failed, and its last error.
	mu     sync.Mutex
	failed map[string]Failure
}

var _ adaptation.Metrics = (*metrics)(nil)

func newMetrics(reg prometheus.Registerer, connected *atomic.Int64) (*metrics, error) {
	m := &metrics{
		connected: connected, failed: map[string]Failure{},
		requests: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nodeagent_nri_request_seconds", Help: "Time that NRI plugins take to answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .1, .5, 2, 10},
		}, []string{"plugin", "operation"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_nri_failures_total", Help: "Requests that NRI plugins refused or did not answer.",
		}, []string{"plugin", "operation"}),
	}
	if reg == nil {
		return m, nil
	}
	plugins := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "nodeagent_nri_plugins", Help: "NRI plugins that are connected and synchronized.",
	}, func() float64 { return float64(connected.Load()) })
	if err := errors.Join(reg.Register(m.requests), reg.Register(m.failures), reg.Register(plugins)); err != nil {
		return nil, fmt.Errorf("register metrics of NRI: %w", err)
	}
	return m, nil
}

// RecordPluginInvocation counts failures.
func (m *metrics) RecordPluginInvocation(plugin, operation string, err error) {
	if err == nil {
		return
	}
	m.failures.WithLabelValues(plugin, operation).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.failed[plugin]
	f.Count, f.Last, f.At = f.Count+1, operation+": "+err.Error(), time.Now()
	m.failed[plugin] = f
}

// RecordPluginLatency measures an answer.
func (m *metrics) RecordPluginLatency(plugin, operation string, latency time.Duration) {
	m.requests.WithLabelValues(plugin, operation).Observe(latency.Seconds())
}

// RecordPluginAdjustments is of no use to operators.
func (m *metrics) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {
}

// UpdatePluginCount is called under the library's lock, before a plugin's synchronization ends.
func (m *metrics) UpdatePluginCount(n int) { m.connected.Store(int64(n)) }
