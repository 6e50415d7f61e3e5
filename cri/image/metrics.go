// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count pulls for operators; the CRI has no room for them.
type metrics struct {
	pulls   *prometheus.HistogramVec
	bytes   prometheus.Counter
	retries prometheus.Counter
}

// newMetrics makes the metrics and registers them, when there is a registerer.
func newMetrics(reg prometheus.Registerer, s *Service) (*metrics, error) {
	m := &metrics{
		pulls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nodeagent_image_pull_seconds", Help: "Duration of image pulls by result.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600},
		}, []string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodeagent_image_pull_bytes_total", Help: "Bytes fetched from registries by successful pulls.",
		}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nodeagent_image_pull_continued_total", Help: "Downloads that broke and were continued.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.pulls, m.bytes, m.retries,
		progressCollector{s},
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nodeagent_image_pulls_running", Help: "Image pulls in flight.",
		}, func() float64 {
			s.board.mu.Lock()
			defer s.board.mu.Unlock()
			return float64(len(s.board.running))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "nodeagent_images", Help: "Images on the node.",
		}, func() float64 { return float64(len(s.index.all())) }),
	} {
		errs = append(errs, reg.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("register metrics of images: %w", err)
	}
	return m, nil
}

// pulled counts one pull that has ended.
func (m *metrics) pulled(p Progress, err error) {
	result := "success"
	if err != nil {
		result = "failure"
	} else {
		m.bytes.Add(float64(p.Total - p.Reused))
	}
	m.pulls.WithLabelValues(result).Observe(time.Since(p.Started).Seconds())
	m.retries.Add(float64(max(p.Attempts-1, 0)))
}
