// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTimeout bounds calls whose caller sets no deadline, except those that
// may take as long as they like.
const callTimeout = 10 * time.Minute

// unary does for a call what every call needs: recover, refuse until
// recovered, deadline, one log line, metric, and the error's code.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	method := path.Base(info.FullMethod)
	start := time.Now()
	defer func() {
		err = grpcError(err)
		s.finish(ctx, method, req, start, err)
	}()
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(ctx, method, p)
		}
	}()
	if err := s.available(method); err != nil {
		return nil, err
	}
	if d, ok := moves(method); ok {
		s.grace.Hold(ctx, d)
	}
	if _, ok := ctx.Deadline(); !ok && !unbounded(method) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	return next(ctx, req)
}

// stream is unary for streaming calls, which have no deadline.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	method := path.Base(info.FullMethod)
	start := time.Now()
	ctx := ss.Context()
	defer func() {
		err = grpcError(err)
		s.finish(ctx, method, nil, start, err)
	}()
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(ctx, method, p)
		}
	}()
	if err := s.available(method); err != nil {
		return err
	}
	return next(srv, ss)
}

// available refuses everything but Version until the records are right.
func (s *Server) available(method string) error {
	if s.recovered.Load() || method == "Version" {
		return nil
	}
	return fmt.Errorf("nodeagent has not recovered its state yet: %w", errdefs.ErrUnavailable)
}

// unbounded names the calls that end by rules of their own.
func unbounded(method string) bool {
	switch method {
	case "ExecSync", "PullImage", "StopContainer", "CheckpointContainer", "CheckpointPod", "RestorePod":
		return true
	}
	return false
}

// moves says whether a call leads to a process that is moved into its cgroup, by itself or by the next call, and within what time
// as a rule.
func moves(method string) (time.Duration, bool) {
	switch method {
	case "RunPodSandbox", "CreateContainer", "StartContainer":
		return 30 * time.Millisecond, true
	case "ExecSync", "Exec":
		return 0, true
	}
	return 0, false
}

// changes names the calls that change what runs; they are worth a line.
func changes(method string) bool {
	for _, verb := range []string{"Run", "Stop", "Remove", "Create", "Start", "Update", "Pull", "Checkpoint", "Restore"} {
		if strings.HasPrefix(method, verb) {
			return true
		}
	}
	return false
}

func (s *Server) panicked(ctx context.Context, method string, p any) error {
	s.deps.Log.ErrorContext(ctx, "panic in a CRI call", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fmt.Errorf("internal error in %s: %w", method, errdefs.ErrInternal)
}

// finish writes the one log line and the metric of a call.
func (s *Server) finish(ctx context.Context, method string, req any, start time.Time, err error) {
	took := time.Since(start)
	code := status.Code(err)
	s.metrics.calls.WithLabelValues(method, code.String()).Observe(took.Seconds())
	traceID := s.describe(ctx, req)
	level := slog.LevelDebug
	switch {
	case err != nil && code != codes.NotFound && code != codes.Unavailable && code != codes.Unimplemented && code != codes.Canceled:
		level = slog.LevelWarn
	case err == nil && changes(method):
		level = slog.LevelInfo
	}
	if !s.deps.Log.Enabled(ctx, level) {
		return
	}
	attrs := append([]any{"method", method, "took", took}, s.identity(req)...)
	if traceID != "" {
		attrs = append(attrs, "trace", traceID)
	}
	if err != nil {
		attrs = append(attrs, "code", code.String(), "err", status.Convert(err).Message())
	}
	s.deps.Log.Log(ctx, level, "CRI call", attrs...)
}

// identity tells which pod a request is about.
func (s *Server) identity(req any) []any {
	var attrs []any
	pod := func(md *runtimeapi.PodSandboxMetadata) {
		attrs = append(attrs, "pod", md.GetNamespace()+"/"+md.GetName())
	}
	sandbox := func(ref string) {
		attrs = append(attrs, "sandbox", ref)
		if sb, err := s.store.Sandboxes.Find(ref); err == nil {
			pod(sb.Config.M.GetMetadata())
		}
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		pod(r.GetConfig().GetMetadata())
	case *runtimeapi.CreateContainerRequest:
		sandbox(r.GetPodSandboxId())
		attrs = append(attrs, "name", r.GetConfig().GetMetadata().GetName())
	case interface{ GetContainerId() string }:
		attrs = append(attrs, "container", r.GetContainerId())
		if c, err := s.store.Containers.Find(r.GetContainerId()); err == nil {
			attrs = append(attrs, "name", c.Config.M.GetMetadata().GetName())
			sandbox(c.SandboxID)
		}
	case interface{ GetPodSandboxId() string }:
		sandbox(r.GetPodSandboxId())
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		attrs = append(attrs, "image", r.GetImage().GetImage())
	}
	return attrs
}
