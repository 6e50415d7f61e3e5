// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// streamBytes take about ten seconds on their way.
const streamBytes = 64 << 20

// TestKilledAgentLosesNoByte kills nodeagent three times under TCP streams that pods of
// both families read through a ClusterIP, and starts a pod in between.
func TestKilledAgentLosesNoByte(t *testing.T) {
	ns := namespace(t)
	web(t, ns)
	svc, err := shared.Client.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var readers []string
	for i, ip := range svc.Spec.ClusterIPs {
		name := fmt.Sprintf("reader%d", i)
		readers = append(readers, name)
		reader(t, ns, name, fmt.Sprintf("http://%s/stream?bytes=%d", net.JoinHostPort(ip, "80"), streamBytes))
	}
	for _, r := range readers {
		eventually(t, 30*time.Second, logHas(ns, r, "stream begins"))
	}
	before := containers(t, ns)
	node := shared.Nodes[0]
	for i := range 3 {
		killRuntime(t, node)
		box(t, ns, fmt.Sprintf("between%d", i), "")
	}
	for _, r := range readers {
		phase(t, ns, r, corev1.PodSucceeded)
		eventually(t, 10*time.Second, logHas(ns, r, fmt.Sprintf("bytes=%d", streamBytes)))
	}
	after := containers(t, ns)
	for id, restarts := range before {
		if got, ok := after[id]; !ok || got != restarts {
			t.Errorf("container %s is gone or was restarted", id)
		}
	}
}

// reader runs a pod that reads a stream and ends well when it got every byte.
func reader(t *testing.T, ns, name, url string) {
	t.Helper()
	apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  restartPolicy: Never
  containers: [{name: main, image: %q, args: ["-fetch=%s"]}]
`, name, cluster.WebImage, url))
}

func logHas(ns, pod, text string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := shared.Client.CoreV1().Pods(ns).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			return err
		}
		if !bytes.Contains(out, []byte(text)) {
			return fmt.Errorf("the log of %s has no %q:\n%s", pod, text, out)
		}
		return nil
	}
}

// killRuntime kills the node's runtime and waits until it serves again.
func killRuntime(t *testing.T, node *cluster.Node) {
	t.Helper()
	old, _ := node.Runtime.PID()
	if err := node.Runtime.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	served(t, node, old)
}

// served waits until another process than old serves the node's CRI.
func served(t *testing.T, node *cluster.Node, old int) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		if pid, _ := node.Runtime.PID(); pid == old {
			return errors.New("not started again yet")
		}
		conn, err := node.DialUnix(ctx, node.CRISocket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// containers maps the ids of a namespace's running containers to their restarts.
func containers(t *testing.T, ns string) map[string]int32 {
	t.Helper()
	pods, err := shared.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int32{}
	for _, p := range pods.Items {
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running != nil || c.State.Terminated != nil {
				out[c.ContainerID] = c.RestartCount
			}
		}
	}
	return out
}

// TestRestarts ends each program of the node in turn: the pods notice nothing, and the
// next pod starts as if nothing had been.
func TestRestarts(t *testing.T) {
	ns := namespace(t)
	web(t, ns)
	box(t, ns, "box", "")
	before := containers(t, ns)
	node := shared.Nodes[0]
	ends := []struct {
		name string
		do   func()
	}{
		{"runtime ends on SIGTERM", func() {
			old, _ := node.Runtime.PID()
			if err := node.Runtime.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			served(t, node, old)
		}},
		{"containerd is killed", func() { killContainerd(t, node) }},
		{"kubelet is killed", func() {
			if err := node.Kubelet.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}},
		{"both are killed", func() {
			killContainerd(t, node)
			killRuntime(t, node)
		}},
	}
	for i, e := range ends {
		t.Run(e.name, func(t *testing.T) {
			e.do()
			box(t, ns, fmt.Sprintf("next%d", i), "")
			for id, restarts := range before {
				if got, ok := containers(t, ns)[id]; !ok || got != restarts {
					t.Errorf("container %s is gone or was restarted", id)
				}
			}
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				out, err := shared.Kubectl(ctx, "-n", ns, "exec", "box", "--", "sh", "-c", "wget -qO- http://$WEB_SERVICE_HOST")
				if err == nil && !strings.Contains(out, "hello from web") {
					err = fmt.Errorf("answers %q", out)
				}
				return err
			})
		})
	}
}

// killContainerd kills the node's containerd and waits for its successor.
func killContainerd(t *testing.T, node *cluster.Node) {
	t.Helper()
	old, err := node.Processes("containerd")
	if err != nil || len(old) != 1 {
		t.Fatalf("the node's containerds are %v: %v", old, err)
	}
	if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func(context.Context) error {
		now, err := node.Processes("containerd")
		if err == nil && (len(now) != 1 || now[0] == old[0]) {
			err = fmt.Errorf("no new containerd yet: %v", now)
		}
		return err
	})
}
