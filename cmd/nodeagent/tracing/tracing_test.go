// SPDX-License-Identifier: Apache-2.0

package tracing_test

import (
	"context"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.opentelemetry.io/otel/trace"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/tracing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// collector is a collector of traces as OpenTelemetry's own API describes it.
type collector struct {
	collectorpb.UnimplementedTraceServiceServer

	// spans gets what comes in.
	spans chan *tracepb.Span
	// resource is the last one's attributes.
	resource map[string]string
}

func (c *collector) Export(_ context.Context, req *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	for _, r := range req.GetResourceSpans() {
		for _, a := range r.GetResource().GetAttributes() {
			c.resource[a.GetKey()] = a.GetValue().GetStringValue()
		}
		for _, s := range r.GetScopeSpans() {
			for _, span := range s.GetSpans() {
				c.spans <- span
			}
		}
	}
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func startCollector(t *testing.T) (*collector, string) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{spans: make(chan *tracepb.Span, 100), resource: map[string]string{}}
	s := grpc.NewServer()
	collectorpb.RegisterTraceServiceServer(s, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, ln.Addr().String()
}

func start(t *testing.T, cfg tracing.Config, m prometheus.Registerer) *tracing.Tracer {
	t.Helper()
	tr, err := tracing.New(cfg, tracing.Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Node: "n1", Version: "v1", Metrics: m})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return tr
}

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

// call makes one request that has a step, with a caller's trace context or none.
func call(t *testing.T, tr *tracing.Tracer, parent string) {
	t.Helper()
	h := tr.Handler("verb", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, span := trace.SpanFromContext(r.Context()).TracerProvider().Tracer("x").Start(r.Context(), "step")
		span.End()
	}))
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
	if parent != "" {
		r.Header.Set("Traceparent", parent)
	}
	h.ServeHTTP(httptest.NewRecorder(), r)
}

func stop(t *testing.T, tr *tracing.Tracer) {
	t.Helper()
	if err := tr.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestContinuesCallersTrace: what a caller samples is one trace with its own,
// whatever the rate is; what it does not sample is none.
func TestContinuesCallersTrace(t *testing.T) {
	c, addr := startCollector(t)
	reg := prometheus.NewRegistry()
	tr := start(t, tracing.Config{Endpoint: addr, Insecure: true}, reg)
	call(t, tr, "00-"+traceID+"-"+spanID+"-00")
	call(t, tr, "")
	call(t, tr, "00-"+traceID+"-"+spanID+"-01")
	stop(t, tr)
	if n := len(c.spans); n != 2 {
		t.Fatalf("%d spans, want 2", n)
	}
	step, verb := <-c.spans, <-c.spans
	if step.GetName() != "step" || verb.GetName() != "verb" {
		t.Fatalf("spans %q and %q", step.GetName(), verb.GetName())
	}
	if got := hex.EncodeToString(verb.GetParentSpanId()); got != spanID {
		t.Errorf("the verb's parent is %s, want the caller %s", got, spanID)
	}
	if string(step.GetParentSpanId()) != string(verb.GetSpanId()) {
		t.Error("the step is not below the verb")
	}
	for _, s := range []*tracepb.Span{step, verb} {
		if got := hex.EncodeToString(s.GetTraceId()); got != traceID {
			t.Errorf("%s is of trace %s", s.GetName(), got)
		}
	}
	if c.resource["service.name"] != "nodeagent" || c.resource["k8s.node.name"] != "n1" {
		t.Errorf("resource %v", c.resource)
	}
	want := "# HELP nodeagent_tracing_spans_total Spans by what became of them: sent, or lost because the collector did not take them.\n" +
		"# TYPE nodeagent_tracing_spans_total counter\nnodeagent_tracing_spans_total{outcome=\"sent\"} 2\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestRate: own traces begin at the rate, which a reload changes.
func TestRate(t *testing.T) {
	c, addr := startCollector(t)
	cfg := tracing.Config{Endpoint: addr, Insecure: true}
	tr := start(t, cfg, nil)
	call(t, tr, "")
	cfg.SamplingRatePerMillion = 1_000_000
	tr.Reload(cfg)
	call(t, tr, "")
	// A call of the daemon's own begins no trace.
	_, span := tr.Provider().Tracer("x").Start(t.Context(), "own", trace.WithSpanKind(trace.SpanKindClient))
	span.End()
	stop(t, tr)
	if n := len(c.spans); n != 2 {
		t.Errorf("%d spans, want the two of the call after the reload", n)
	}
}

// TestCollectorAway: the daemon ends soon, and what is lost is counted.
func TestCollectorAway(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	tr := start(t, tracing.Config{Endpoint: addr, Insecure: true, SamplingRatePerMillion: 1_000_000}, nil)
	call(t, tr, "")
	stop(t, tr)
}

// TestOff: without an endpoint there is no tracer, and that is no fault.
func TestOff(t *testing.T) {
	tr, err := tracing.New(tracing.Config{}, tracing.Deps{})
	if err != nil || tr != nil || tr.Provider() != nil {
		t.Fatalf("%v, %v", tr, err)
	}
	stop(t, tr)
	tr.Reload(tracing.Config{})
	call(t, tr, "00-"+traceID+"-"+spanID+"-01")
}

func TestValidate(t *testing.T) {
	for want, cfg := range map[string]tracing.Config{
		`endpoint: "collector" is not host:port`:                      {Endpoint: "collector"},
		"samplingRatePerMillion: 1000001 is not within 0 to 1000000":  {SamplingRatePerMillion: 1_000_001},
		"caFile: means nothing with insecure: true":                   {Insecure: true, CAFile: "/ca"},
		`caFile: "ca" is not an absolute path`:                        {CAFile: "ca"},
		"certFile: goes with keyFile, and one of them is missing":     {CertFile: "/c"},
		"read the collector's authority: open /nowhere: no such file": {Endpoint: "c:4317", CAFile: "/nowhere"},
	} {
		if _, err := tracing.New(cfg, tracing.Deps{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	env := strings.Join(tracing.Config{Endpoint: "c:4317", CAFile: "/ca"}.ContainerdEnv(), " ")
	if !strings.Contains(env, "TRACES_ENDPOINT=https://c:4317") || !strings.Contains(env, "TRACES_CERTIFICATE=/ca") {
		t.Error(env)
	}
}
