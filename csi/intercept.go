// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// traced makes a span of each call, below its caller's when that sends one (W3C trace context).
func traced(p trace.TracerProvider) []grpc.ServerOption {
	if p == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}
}

// unary wraps every call: a panic becomes an error, the duration a metric and a
// log line, the error a gRPC code. Requests are not logged: they carry secrets
// and mount flags.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "%s: internal fault: %v", info.FullMethod, p)
			s.log.ErrorContext(ctx, "call ended in a fault", "method", info.FullMethod, "fault", p, "stack", string(debug.Stack()))
		}
		if err != nil {
			resp, err = nil, toStatus(err)
		}
		s.done(ctx, info.FullMethod, req, start, err)
	}()
	return next(ctx, req)
}

// stream is unary for the calls that answer with a stream.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "%s: internal fault: %v", info.FullMethod, p)
			s.log.ErrorContext(ss.Context(), "call ended in a fault", "method", info.FullMethod, "fault", p, "stack", string(debug.Stack()))
		}
		if err != nil {
			err = toStatus(err)
		}
		s.done(ss.Context(), info.FullMethod, nil, start, err)
	}()
	return next(srv, ss)
}

func (s *Server) done(ctx context.Context, method string, req any, start time.Time, err error) {
	code := status.Code(err)
	took := time.Since(start)
	s.metrics.observe(path.Base(method), code, took)
	trace.SpanFromContext(ctx).SetAttributes(attribute.String("csi.volume", subject(req)))
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelInfo
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	s.log.Log(ctx, level, "csi call", "method", path.Base(method), "volume", subject(req), "took", took, "code", code.String(), "err", err)
}

// subject names what a request is about.
func subject(req any) string {
	switch r := req.(type) {
	case interface{ GetVolumeId() string }:
		return r.GetVolumeId()
	case interface{ GetSnapshotId() string }:
		return r.GetSnapshotId()
	case interface{ GetGroupSnapshotId() string }:
		return r.GetGroupSnapshotId()
	case interface{ GetName() string }:
		return r.GetName()
	default:
		return ""
	}
}

func toStatus(err error) error {
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

// codeOf is the one place where errors become gRPC codes. The order matters
// where an error wraps several sentinels: what the caller can do about it comes
// first. The kubelet takes Canceled, DeadlineExceeded, Unavailable,
// ResourceExhausted and Aborted as "perhaps half done", every other code as
// "certainly not done".
func codeOf(err error) codes.Code {
	for _, c := range []struct {
		is   error
		code codes.Code
	}{
		{volume.ErrHalfDone, codes.Aborted},
		{volume.ErrBusy, codes.Aborted},
		{volume.ErrToken, codes.Aborted},
		{volume.ErrUnavailable, codes.Unavailable},
		{volume.ErrPrecondition, codes.FailedPrecondition},
		{volume.ErrInUse, codes.FailedPrecondition},
		{volume.ErrSourceNotFound, codes.NotFound},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrExists, codes.AlreadyExists},
		{volume.ErrRange, codes.OutOfRange},
		{volume.ErrNoSpace, codes.ResourceExhausted},
		{volume.ErrElsewhere, codes.ResourceExhausted},
		{volume.ErrInvalid, codes.InvalidArgument},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, c.is) {
			return c.code
		}
	}
	return codes.Internal
}
