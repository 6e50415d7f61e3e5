// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeagent/nodeagent/cri/store"
)

// metrics of the CRI room.
type metrics struct {
	calls  *prometheus.HistogramVec
	stages *prometheus.HistogramVec
}

// registerPool registers the warm pool's metrics.
func registerPool(r prometheus.Registerer, stats func() (size int, hits, misses uint64)) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nodeagent_cri_warm_sandboxes", Help: "Sandboxes that are made and wait for a pod.",
		}, func() float64 {
			size, _, _ := stats()
			return float64(size)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "nodeagent_cri_warm_hits_total", Help: "Pods of the usual kind that got a sandbox that was made ahead.",
		}, func() float64 {
			_, hits, _ := stats()
			return float64(hits)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "nodeagent_cri_warm_misses_total", Help: "Pods of the usual kind for which none was ready.",
		}, func() float64 {
			_, _, misses := stats()
			return float64(misses)
		}),
	} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics of the warm pool: %w", err)
		}
	}
	return nil
}

// stage records one stage of a call.
func (m *metrics) stage(call, stage string, took time.Duration) {
	m.stages.WithLabelValues(call, stage).Observe(took.Seconds())
}

// newMetrics registers the room's metrics; with a nil registerer they count
// for nobody.
func newMetrics(r prometheus.Registerer, st *store.Store) (*metrics, error) {
	m := &metrics{calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "nodeagent_cri_call_seconds", Help: "Duration of CRI calls by method and gRPC code.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60},
	}, []string{"method", "code"}), stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "nodeagent_cri_stage_seconds", Help: "Duration of the stages of CRI calls that make and remove pods and containers.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10},
	}, []string{"method", "stage"})}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.stages,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nodeagent_cri_sandboxes", Help: "Pod sandboxes that are ready.",
		}, func() float64 {
			return float64(len(st.Sandboxes.Select(func(s *store.Sandbox) bool { return s.State == store.SandboxReady })))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nodeagent_cri_containers_running", Help: "Containers that run.",
		}, func() float64 {
			return float64(len(st.Containers.Select(func(c *store.Container) bool { return c.State == store.ContainerRunning })))
		}),
	} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of the CRI: %w", err)
		}
	}
	return m, nil
}
