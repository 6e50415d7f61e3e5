// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"path"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// traced makes a span of each call, below that of the kubelet when it sends one (W3C trace context). Without a
// provider calls cost nothing more.
func traced(p trace.TracerProvider) []grpc.ServerOption {
	if p == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p), otelgrpc.WithPropagators(propagation.TraceContext{}),
		// The stream of events ends with the kubelet: no span.
		otelgrpc.WithFilter(func(i *stats.RPCTagInfo) bool { return path.Base(i.FullMethodName) != "GetContainerEvents" }),
	))}
}

// describe tells the call's span which pod it is about, and returns the trace's
// id for the log; "" when the call is not recorded.
func (s *Server) describe(ctx context.Context, req any) string {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return ""
	}
	pairs := s.identity(req)
	for i := 0; i+1 < len(pairs); i += 2 {
		key, _ := pairs[i].(string)
		value, _ := pairs[i+1].(string)
		span.SetAttributes(attribute.String("cri."+key, value))
	}
	return span.SpanContext().TraceID().String()
}
