// SPDX-License-Identifier: Apache-2.0

package image

import "github.com/prometheus/client_golang/prometheus"

// progressCollector shows the pulls that run, one series each for as long as it runs.
type progressCollector struct{ s *Service }

var _ prometheus.Collector = progressCollector{}

func (progressCollector) fetched() *prometheus.Desc {
	return prometheus.NewDesc("nodeagent_image_pull_fetched_bytes", "Bytes that a running pull has fetched.", []string{"image"}, nil)
}

func (progressCollector) total() *prometheus.Desc {
	return prometheus.NewDesc("nodeagent_image_pull_size_bytes", "Bytes that a running pull has to fetch, as far as it knows.", []string{"image"}, nil)
}

// Describe names the series.
func (c progressCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.fetched()
	out <- c.total()
}

// Collect shows the pulls of this moment.
func (c progressCollector) Collect(out chan<- prometheus.Metric) {
	seen := map[string]bool{}
	for _, p := range c.s.Pulls() {
		if !p.Ended.IsZero() || seen[p.Ref] { // one image may be pulled with several credentials
			continue
		}
		seen[p.Ref] = true
		out <- prometheus.MustNewConstMetric(c.fetched(), prometheus.GaugeValue, float64(p.Fetched), p.Ref)
		out <- prometheus.MustNewConstMetric(c.total(), prometheus.GaugeValue, float64(p.Total), p.Ref)
	}
}
