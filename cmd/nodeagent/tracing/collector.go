// SPDX-License-Identifier: Apache-2.0

package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// exportTimeout bounds one export, the wait for a collector that is restarted included.
const exportTimeout = 10 * time.Second

// exportMethod is called with TracesData, which on the wire is the same as ExportTraceServiceRequest.
const exportMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// collector sends spans. What becomes of them is handled here: it is counted,
// and the log has a line when sending begins to fail and when it works again.
type collector struct {
	endpoint string
	agent    string
	creds    credentials.TransportCredentials
	log      *slog.Logger
	spans    *prometheus.CounterVec
	conn     *grpc.ClientConn
	failing  atomic.Bool

	// uploads is held for reading while an export runs; Stop waits for them.
	uploads sync.RWMutex
	// stopped makes later exports do nothing.
	stopped bool
}

var _ otlptrace.Client = (*collector)(nil)

func newCollector(cfg Config, deps Deps) (*collector, error) {
	creds, err := cfg.credentials()
	if err != nil {
		return nil, err
	}
	c := &collector{
		endpoint: cfg.Endpoint, agent: "nodeagent/" + deps.Version, creds: creds, log: deps.Log,
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nodeagent_tracing_spans_total", Help: "Spans by what became of them: sent, or lost because the collector did not take them.",
		}, []string{"outcome"}),
	}
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(c.spans); err != nil {
			return nil, fmt.Errorf("register metrics of tracing: %w", err)
		}
	}
	return c, nil
}

// Start implements otlptrace.Client; gRPC connects when there is something to send.
func (c *collector) Start(context.Context) (err error) {
	c.conn, err = grpc.NewClient(c.endpoint, grpc.WithTransportCredentials(c.creds), grpc.WithUserAgent(c.agent))
	if err != nil {
		return fmt.Errorf("connect to the collector of traces at %s: %w", c.endpoint, err)
	}
	return nil
}

// Stop implements otlptrace.Client: it ends the export that runs and waits for it. It may be called again.
func (c *collector) Stop(context.Context) error {
	err := c.conn.Close()
	c.uploads.Lock()
	defer c.uploads.Unlock()
	c.stopped = true
	if status.Code(err) == codes.Canceled { // it was closed before
		return nil
	}
	return err
}

// UploadTraces implements otlptrace.Client.
func (c *collector) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	c.uploads.RLock()
	defer c.uploads.RUnlock()
	if c.stopped {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, exportTimeout)
	defer cancel()
	err := c.conn.Invoke(ctx, exportMethod, &tracepb.TracesData{ResourceSpans: spans}, &emptypb.Empty{}, grpc.WaitForReady(true))
	n := 0
	for _, r := range spans {
		for _, s := range r.GetScopeSpans() {
			n += len(s.GetSpans())
		}
	}
	if err != nil {
		c.spans.WithLabelValues("lost").Add(float64(n))
		if !c.failing.Swap(true) {
			c.log.WarnContext(ctx, "traces cannot be sent and are lost", "endpoint", c.endpoint, "err", err)
		}
		return nil
	}
	c.spans.WithLabelValues("sent").Add(float64(n))
	if c.failing.Swap(false) {
		c.log.InfoContext(ctx, "traces are sent again", "endpoint", c.endpoint)
	}
	return nil
}
