// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	csi "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

const (
	criSocket = "/run/nodeagent/cri.sock"
	apiSocket = "/run/nodeagent/api.sock"
	csiSocket = "/var/lib/kubelet/plugins/csi.nodeagent.dev/csi.sock"
	regSocket = "/var/lib/kubelet/plugins_registry/csi.nodeagent.dev-reg.sock"
)

// dial opens a gRPC connection to a unix socket of the node.
func dial(t *testing.T, n *cluster.Node, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return n.DialUnix(ctx, path) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestSocketsRefuse sends each server requests that it must refuse with the right code.
func TestSocketsRefuse(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	runtime, storage := dial(t, n, criSocket), dial(t, n, csiSocket)
	r, i, d := runtimeapi.NewRuntimeServiceClient(runtime), runtimeapi.NewImageServiceClient(runtime), csi.NewNodeClient(storage)
	c := csi.NewControllerClient(storage)
	tests := []struct {
		name string
		want codes.Code
		call func(context.Context) error
	}{
		{"RunPodSandbox of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})
			return err
		}},
		{"RunPodSandbox without metadata", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Hostname: "x"}})
			return err
		}},
		{"CreateContainer of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{})
			return err
		}},
		{"StartContainer of the unknown", codes.NotFound, func(ctx context.Context) error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "unknown"})
			return err
		}},
		{"ContainerStatus of the unknown", codes.NotFound, func(ctx context.Context) error {
			_, err := r.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "unknown"})
			return err
		}},
		{"PodSandboxStatus of the unknown", codes.NotFound, func(ctx context.Context) error {
			_, err := r.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "unknown"})
			return err
		}},
		{"RemoveContainer of the unknown", codes.OK, func(ctx context.Context) error {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "unknown"})
			return err
		}},
		{"StopPodSandbox of the unknown", codes.OK, func(ctx context.Context) error {
			_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "unknown"})
			return err
		}},
		{"ExecSync without a command", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := r.ExecSync(ctx, &runtimeapi.ExecSyncRequest{})
			return err
		}},
		{"Exec in the unknown", codes.NotFound, func(ctx context.Context) error {
			_, err := r.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: "unknown", Cmd: []string{"true"}, Stdout: true})
			return err
		}},
		{"PullImage of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := i.PullImage(ctx, &runtimeapi.PullImageRequest{})
			return err
		}},
		{"PullImage of what is no reference", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := i.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "UPPER CASE:::"}})
			return err
		}},
		{"an unknown method", codes.Unimplemented, func(ctx context.Context) error {
			return runtime.Invoke(ctx, "/runtime.v1.RuntimeService/NoSuchMethod", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
		}},
		{"NodePublishVolume of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := d.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{})
			return err
		}},
		{"NodeStageVolume of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := d.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{})
			return err
		}},
		{"NodeGetVolumeStats of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := d.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{})
			return err
		}},
		{"CreateVolume of nothing", codes.InvalidArgument, func(ctx context.Context) error {
			_, err := c.CreateVolume(ctx, &csi.CreateVolumeRequest{})
			return err
		}},
		{"DeleteVolume of the unknown", codes.OK, func(ctx context.Context) error {
			_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "unknown"})
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), slower*10*time.Second)
			defer cancel()
			err := tt.call(ctx)
			if got := status.Code(err); got != tt.want {
				t.Errorf("answer is %s, want %s: %v", got, tt.want, err)
			}
			if err != nil && len(status.Convert(err).Message()) < 10 {
				t.Errorf("the message says nothing: %q", err)
			}
		})
	}
}

// TestGarbage writes noise into each socket; the server goes on serving others.
func TestGarbage(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	noise := [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), []byte("\x00\xff\x00\xff garbage\n\n\n"), bytes.Repeat([]byte{0xff}, 1<<20),
		[]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame"), []byte("POST /v1/cni/add HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{]}{["),
	}
	for _, socket := range []string{criSocket, apiSocket, csiSocket, regSocket} {
		for _, data := range noise {
			conn, err := n.DialUnix(t.Context(), socket)
			if err != nil {
				t.Fatalf("%s: %v", socket, err)
			}
			_ = conn.SetDeadline(time.Now().Add(time.Second)) // a server may wait for more
			_, _ = conn.Write(data)
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
	}
	out, err := n.Run(t.Context(), filepath.Join(shared.Bin, "nodeagent"), "status")
	if err != nil {
		t.Fatal(err)
	}
	has(t, "status", out, "cri:", "serving")
	if _, err := runtimeapi.NewRuntimeServiceClient(dial(t, n, criSocket)).Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
	if _, starts := n.Runtime.PID(); starts > 1 {
		t.Logf("nodeagent was started %d times, some by other tests", starts)
	}
}

func TestLocalAPIRefuses(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return n.DialUnix(ctx, apiSocket) },
	}}
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/v1/no-such-thing", http.StatusNotFound},
		{http.MethodDelete, "/v1/status", http.StatusNotFound},
		{http.MethodGet, "/v1/status", http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://nodeagent"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s %s: %s, want %d", tt.method, tt.path, resp.Status, tt.want)
		}
	}
}

// TestSecondInstance sees that a node has one nodeagent, and that the first does not mind.
func TestSecondInstance(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	ctx, cancel := context.WithTimeout(t.Context(), slower*20*time.Second)
	defer cancel()
	_, err := n.Run(ctx, filepath.Join(shared.Bin, "nodeagent"), "run", "--config", "/etc/nodeagent/config.yaml")
	if err == nil || ctx.Err() != nil {
		t.Fatalf("a second instance ends with %v", err)
	}
	has(t, "error", err.Error(), "another nodeagent", "/run/nodeagent")
	if _, err := n.Run(ctx, filepath.Join(shared.Bin, "nodeagent"), "status"); err != nil {
		t.Error(err)
	}
}

func TestConfigFaults(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	const bad = `apiVersion: nodeagent.dev/v1alpha1
kind: NodeAgentConfiguration
node:
  colour: blue
network:
  podCIDRs: [10.0.0.0/8, 10.1.0.0/16]
`
	if err := n.WriteFile("/etc/nodeagent/bad.yaml", []byte(bad)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"config", "check"}, {"run"}} {
		_, err := n.Run(t.Context(), filepath.Join(shared.Bin, "nodeagent"), append(args, "--config", "/etc/nodeagent/bad.yaml")...)
		if err == nil {
			t.Fatalf("%v accepts it", args)
		}
		has(t, fmt.Sprint(args), err.Error(), "bad.yaml:4", "colour", "bad.yaml:6", "network.podCIDRs", "overlap")
	}
}

// TestBadPods asks for what cannot be, as users do, and reads the reason where they
// would.
func TestBadPods(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	tests := []struct{ name, spec, reason, message string }{
		{"no-image", `{name: main, image: "registry.local/no-such-image:1"}`, "ErrImagePull", "not found"},
		{"odd-image", `{name: main, image: "NOT AN IMAGE"}`, "InvalidImageName", ""},
		{"no-program", `{name: main, image: busybox, command: [no-such-program]}`, "RunContainerError|StartError|CrashLoopBackOff", "no-such-program"},
		{"no-user", `{name: main, image: busybox, command: [id], securityContext: {runAsNonRoot: true}}`, "CreateContainerConfigError", "runAsNonRoot"},
		{"no-directory", `{name: main, image: busybox, command: [id], workingDir: /etc/passwd}`, "RunContainerError|StartError|CrashLoopBackOff|CreateContainerError", ""},
	}
	for _, tt := range tests {
		apply(t, ns, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [%s]}\n", tt.name, tt.spec))
	}
	for _, tt := range tests {
		eventually(t, time.Minute, func(ctx context.Context) error {
			p, err := shared.Client.CoreV1().Pods(ns).Get(ctx, tt.name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			reason, message := why(p)
			if !strings.Contains("|"+tt.reason+"|", "|"+reason+"|") || !strings.Contains(message, tt.message) {
				return fmt.Errorf("pod %s: %s: %s; want %s: %s", tt.name, reason, message, tt.reason, tt.message)
			}
			return nil
		})
	}
}

// why is what keeps a pod's only container from running.
func why(p *corev1.Pod) (reason, message string) {
	if len(p.Status.ContainerStatuses) == 0 {
		return "", "no status yet"
	}
	s := p.Status.ContainerStatuses[0]
	if w := s.State.Waiting; w != nil {
		reason, message = w.Reason, w.Message
	}
	for _, end := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
		if end != nil {
			message += " " + end.Message
			if reason == "" {
				reason = end.Reason
			}
		}
	}
	return reason, message
}
