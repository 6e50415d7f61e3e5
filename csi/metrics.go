// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// metrics are the room's own collector: call durations, and what the pools and
// volumes hold at the time of the scrape.
type metrics struct {
	volumes *volume.Manager
	calls   *prometheus.HistogramVec

	poolBytes   *prometheus.Desc
	poolReady   *prometheus.Desc
	volumeBytes *prometheus.Desc
	objects     *prometheus.Desc
	unhealthy   *prometheus.Desc
	ioSeconds   *prometheus.Desc
	ioBytes     *prometheus.Desc
	used        *prometheus.Desc
	inodes      *prometheus.Desc
}

var _ prometheus.Collector = (*metrics)(nil)

func newMetrics(v *volume.Manager) *metrics {
	return &metrics{
		volumes: v,
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nodeagent_csi_call_seconds", Help: "Duration of CSI calls.", Buckets: prometheus.ExponentialBuckets(0.0005, 3, 11),
		}, []string{"method", "code"}),
		poolBytes:   prometheus.NewDesc("nodeagent_csi_pool_bytes", "Bytes of a pool: total, available, promised, debt.", []string{"pool", "what"}, nil),
		poolReady:   prometheus.NewDesc("nodeagent_csi_pool_ready", "Whether a pool can serve.", []string{"pool", "backend"}, nil),
		volumeBytes: prometheus.NewDesc("nodeagent_csi_volume_bytes", "Size promised to a volume.", []string{"volume", "pool", "namespace", "claim"}, nil),
		objects:     prometheus.NewDesc("nodeagent_csi_objects", "Number of volumes and snapshots.", []string{"kind"}, nil),
		unhealthy:   prometheus.NewDesc("nodeagent_csi_volume_unhealthy", "A condition of a volume.", []string{"volume", "status", "reason"}, nil),
		ioSeconds: prometheus.NewDesc("nodeagent_csi_volume_io_seconds",
			"Time of requests on an attached volume's device, each counted with the mean of its five seconds; op is read, write or flush.", []string{"volume", "op"}, nil),
		ioBytes: prometheus.NewDesc("nodeagent_csi_volume_io_bytes_total", "Bytes read from and written to an attached volume's device.", []string{"volume", "op"}, nil),
		used:    prometheus.NewDesc("nodeagent_csi_volume_used_bytes", "Bytes that an attached volume's file system holds.", []string{"volume"}, nil),
		inodes:  prometheus.NewDesc("nodeagent_csi_volume_inodes_used", "Inodes in use of an attached volume's file system, if it counts them.", []string{"volume"}, nil),
	}
}

func (m *metrics) observe(method string, code codes.Code, took time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(took.Seconds())
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.calls.Describe(ch)
	for _, d := range []*prometheus.Desc{m.poolBytes, m.poolReady, m.volumeBytes, m.objects, m.unhealthy, m.ioSeconds, m.ioBytes, m.used, m.inodes} {
		ch <- d
	}
}

// scrapeTime bounds how long a scrape may wait for a slow pool.
const scrapeTime = 5 * time.Second

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.calls.Collect(ch)
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime) //nolint:forbidigo // a collector is given no context
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range m.volumes.Pools(ctx) {
		if p.Err != nil {
			gauge(m.poolReady, 0, p.Name, p.Backend)
			continue
		}
		gauge(m.poolReady, 1, p.Name, p.Backend)
		for what, n := range map[string]int64{"total": p.Capacity.Total, "available": p.Capacity.Available, "promised": p.Capacity.Promised, "debt": p.Capacity.Debt} {
			gauge(m.poolBytes, float64(n), p.Name, what)
		}
	}
	m.collectUse(ctx, ch)
	volumes := m.volumes.List()
	gauge(m.objects, float64(len(volumes)), string(volume.KindVolume))
	gauge(m.objects, float64(len(m.volumes.Snapshots())), string(volume.KindSnapshot))
	for _, v := range volumes {
		gauge(m.volumeBytes, float64(v.Bytes), v.ID, v.Pool, v.Labels["pvc/namespace"], v.Labels["pvc/name"])
		conds, err := m.volumes.Health(ctx, v.ID)
		if err != nil {
			continue
		}
		for _, c := range conds {
			gauge(m.unhealthy, 1, v.ID, string(c.Type), c.Reason)
		}
	}
}

// collectUse tells of attached volumes only, so that its size is bounded by them.
func (m *metrics) collectUse(ctx context.Context, ch chan<- prometheus.Metric) {
	for id, all := range m.volumes.IO() {
		for _, io := range all {
			buckets := map[float64]uint64{}
			for i, bound := range volume.LatencyBounds() {
				buckets[bound] = io.Buckets[i]
			}
			ch <- prometheus.MustNewConstHistogram(m.ioSeconds, io.Count, io.Time.Seconds(), buckets, id, io.Op)
			if io.Op != "flush" {
				ch <- prometheus.MustNewConstMetric(m.ioBytes, prometheus.CounterValue, float64(io.Bytes), id, io.Op)
			}
		}
	}
	for id, s := range m.volumes.Fill(ctx) {
		ch <- prometheus.MustNewConstMetric(m.used, prometheus.GaugeValue, float64(s.Used), id)
		if s.Inodes > 0 {
			ch <- prometheus.MustNewConstMetric(m.inodes, prometheus.GaugeValue, float64(s.InodesUsed), id)
		}
	}
}
