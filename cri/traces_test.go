// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// kubelet is the span of the kubelet that calls, traceID its trace.
const kubelet, traceID = "b7ad6b7169203331", "0af7651916cd43dd8448eb211c80319c"

// TestRootTraces: the kubelet's trace goes on through a call, its stages and
// what containerd is asked for in them.
func TestRootTraces(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdk.NewTracerProvider(sdk.WithSyncer(spans))
	r := newRigWith(t, func(r *rig) {
		r.tracing = provider
		c, err := containerd.New(r.daemon.Config, containerd.Deps{Tracing: provider})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Stop(context.WithoutCancel(t.Context())) })
		r.containerd = c
	})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+traceID+"-"+kubelet+"-01")
	pod := r.pod("traced")
	sb, err := r.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: sb.GetPodSandboxId(), Config: r.shell("c", "true"), SandboxConfig: pod,
	}); err != nil {
		t.Fatal(err)
	}
	for child, parent := range map[string]string{
		"runtime.v1.RuntimeService/RunPodSandbox": "",
		"record intent":   "runtime.v1.RuntimeService/RunPodSandbox",
		"make namespaces": "runtime.v1.RuntimeService/RunPodSandbox",
		"attach network":  "runtime.v1.RuntimeService/RunPodSandbox",
		"resolve image":   "runtime.v1.RuntimeService/CreateContainer",
		"containerd.services.snapshots.v1.Snapshots/Prepare": "prepare root file system",
	} {
		r.eventually("the span "+child, func() bool { _, ok := find(spans, child); return ok })
		s, _ := find(spans, child)
		if parent == "" {
			if s.Parent.SpanID().String() != kubelet {
				t.Errorf("%s is below %s, want the kubelet's span", child, s.Parent.SpanID())
			}
			continue
		}
		p, ok := find(spans, parent)
		if !ok || p.SpanContext.SpanID() != s.Parent.SpanID() {
			t.Errorf("%s is not below %s", child, parent)
		}
	}
	if s, ok := find(spans, "runtime.v1.RuntimeService/RunPodSandbox"); !ok || s.SpanKind != trace.SpanKindServer || !says(s, "cri.pod", "traced") {
		t.Errorf("the call's span does not say which pod it is about: %v", s.Attributes)
	}
	r.remove(sb.GetPodSandboxId())
}

func find(all *tracetest.InMemoryExporter, name string) (tracetest.SpanStub, bool) {
	for _, s := range all.GetSpans() {
		if s.Name == name && s.SpanContext.TraceID().String() == traceID {
			return s, true
		}
	}
	return tracetest.SpanStub{}, false
}

// says tells whether an attribute of a span has a text in its value.
func says(s tracetest.SpanStub, key, text string) bool {
	for _, a := range s.Attributes {
		if string(a.Key) == key && strings.Contains(a.Value.AsString(), text) {
			return true
		}
	}
	return false
}
