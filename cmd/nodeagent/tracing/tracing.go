// SPDX-License-Identifier: Apache-2.0

// Package tracing makes OpenTelemetry spans of what the daemon does and sends them to a collector (OTLP over gRPC).
//
// It promises that a collector that is slow or away costs no call any time, and
// memory for at most some thousand spans: what cannot be sent is counted and lost.
//
// The OpenTelemetry SDK makes and batches the spans, its exporter translates them. All of tracing adds 0.5 MB to the
// program's 39.4. OpenTelemetry's gRPC client, which is not used, would add 0.35 MB more: it brings the gRPC gateway,
// an HTTP server, along, and is configured by the environment.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Deps of a Tracer; all are needed unless said otherwise.
type Deps struct {
	Log *slog.Logger
	// Node and Version say where spans come from.
	Node, Version string
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// Tracer makes and sends spans. A nil *Tracer makes none.
type Tracer struct {
	cfg      Config
	log      *slog.Logger
	provider *sdk.TracerProvider
	sampler  *sampler
	client   *collector
}

// New reads certificates and connects nothing. Without an endpoint it returns nil.
func New(cfg Config, deps Deps) (*Tracer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Endpoint == "" {
		return nil, nil //nolint:nilnil // no collector is a configuration, not a fault
	}
	client, err := newCollector(cfg, deps)
	if err != nil {
		return nil, err
	}
	t := &Tracer{cfg: cfg, log: deps.Log, sampler: &sampler{}, client: client}
	t.sampler.set(cfg.SamplingRatePerMillion)
	t.provider = sdk.NewTracerProvider(sdk.WithSampler(t.sampler), sdk.WithResource(resource.NewSchemaless(
		attribute.String("service.name", "nodeagent"), attribute.String("service.version", deps.Version),
		attribute.String("service.instance.id", deps.Node), attribute.String("k8s.node.name", deps.Node),
	)))
	return t, nil
}

// Provider is what rooms make their spans with; nil without a collector.
func (t *Tracer) Provider() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return t.provider
}

// Start begins to send; the collector may be away.
func (t *Tracer) Start(ctx context.Context) error {
	if t == nil {
		return nil
	}
	exporter, err := otlptrace.New(ctx, t.client)
	if err != nil {
		return err
	}
	t.provider.RegisterSpanProcessor(sdk.NewBatchSpanProcessor(exporter))
	t.log.InfoContext(ctx, "traces are sent", "endpoint", t.cfg.Endpoint, "sampling_rate_per_million", t.sampler.rate.Load())
	return nil
}

// Handler makes a span of each request of h, below its caller's when that sends one (W3C trace context). It is not otelhttp's, which
// costs the program 1.5 MB.
func (t *Tracer) Handler(name string, h http.Handler) http.Handler {
	if t == nil {
		return h
	}
	tracer := t.provider.Tracer("github.com/nodeagent/nodeagent/api")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// stopTimeout bounds what the last spans may cost the daemon's end.
const stopTimeout = 2 * time.Second

// Stop sends what there is still, if the collector takes it at once.
func (t *Tracer) Stop(ctx context.Context) error {
	if t == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.WarnContext(ctx, "last spans not sent", "err", err)
		return t.client.Stop(ctx) // which ends the export that did not end
	}
	return nil
}

// Reload puts another sampling rate in force.
func (t *Tracer) Reload(cfg Config) {
	if t != nil {
		t.sampler.set(cfg.SamplingRatePerMillion)
	}
}

// sampler decides at the beginning of a span if it is recorded: as its parent
// is, and without one by the rate, if it is a call that somebody makes of us.
type sampler struct {
	rate  atomic.Int64
	roots atomic.Pointer[sdk.Sampler]
}

var _ sdk.Sampler = (*sampler)(nil)

func (s *sampler) set(perMillion int) {
	roots := sdk.TraceIDRatioBased(float64(perMillion) / million)
	s.rate.Store(int64(perMillion))
	s.roots.Store(&roots)
}

// ShouldSample implements sdk.Sampler.
func (s *sampler) ShouldSample(p sdk.SamplingParameters) sdk.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	switch {
	case parent.IsSampled():
		return sdk.SamplingResult{Decision: sdk.RecordAndSample, Tracestate: parent.TraceState()}
	case parent.IsValid() || p.Kind != trace.SpanKindServer: // the daemon's own calls are no news
		return sdk.SamplingResult{Decision: sdk.Drop, Tracestate: parent.TraceState()}
	}
	return (*s.roots.Load()).ShouldSample(p)
}

// Description implements sdk.Sampler.
func (s *sampler) Description() string {
	return fmt.Sprintf("parent, or %d of a million calls", s.rate.Load())
}
