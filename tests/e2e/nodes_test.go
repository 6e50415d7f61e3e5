// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// everywhere has a web server and a box on each node, and the web server behind a
// Service that the world reaches, too.
const everywhere = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: main
          image: ` + cluster.WebImage + `
          readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: box}
spec:
  selector: {matchLabels: {app: box}}
  template:
    metadata: {labels: {app: box}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - {name: main, image: ` + cluster.BusyboxImage + `, command: [sh, -c, "trap exit TERM; while :; do sleep 3600 & wait; done"]}
`

// TestTwoNodes asks from every pod of two nodes for every pod, for the Service of both
// families, and from the world for its NodePort, also
// while the API server is away.
func TestTwoNodes(t *testing.T) {
	cfg := config("e2e-two")
	cfg.Nodes = 2
	c, err := cluster.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := end(ctx, c); err != nil {
			t.Error(err)
		}
	})
	if err := c.Apply(t.Context(), everywhere); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(t.Context(), "rollout", "status", "daemonset/web", "daemonset/box", "--timeout=90s"); err != nil {
		t.Fatal(err)
	}
	askFromPods(t, c)
	askNodePorts(t, c)
	if err := c.Apply(t.Context(), portService("old", 30081)); err != nil {
		t.Fatal(err)
	}
	t.Run("the API server is away", func(t *testing.T) { serverAway(t, c) })
	if _, err := c.Kubectl(t.Context(), "delete", "daemonset/web", "daemonset/box", "service/web", "--timeout=60s"); err != nil {
		t.Error(err)
	}
}

// askFromPods asks from the box of each node for every web pod and every ClusterIP.
func askFromPods(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]string{} // URL to how its answer begins
	for _, w := range podsOf(t, c, "web") {
		for _, ip := range w.Status.PodIPs {
			targets["http://"+net.JoinHostPort(ip.IP, "8080")] = "hello from " + w.Name
		}
	}
	for _, ip := range svc.Spec.ClusterIPs {
		targets["http://"+net.JoinHostPort(ip, "80")] = "hello from web-"
	}
	for _, b := range podsOf(t, c, "box") {
		for url, want := range targets {
			eventually(t, 20*time.Second, func(ctx context.Context) error {
				out, err := c.Kubectl(ctx, "exec", b.Name, "--", "timeout", "5", "wget", "-qO-", url)
				return begins(b.Spec.NodeName+" "+url, out, want, err)
			})
		}
	}
}

// askNodePorts asks from the world and from a node for the NodePort of each node.
func askNodePorts(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, n := range c.Nodes {
		for _, ip := range []string{n.IP4, n.IP6} {
			url := "http://" + net.JoinHostPort(ip, "30080")
			for _, from := range []*cluster.Box{c.Control, c.Nodes[0].Box} {
				eventually(t, 20*time.Second, func(ctx context.Context) error {
					out, err := get(ctx, from, url)
					return begins(from.Name+" "+url, out, "hello from web-", err)
				})
			}
		}
	}
}

func podsOf(t *testing.T, c *cluster.Cluster, app string) []corev1.Pod {
	t.Helper()
	pods, err := c.Client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil || len(pods.Items) != len(c.Nodes) {
		t.Fatalf("%d pods of %s: %v", len(pods.Items), app, err)
	}
	return pods.Items
}

func begins(what, got, want string, err error) error {
	if err == nil && !strings.HasPrefix(got, want) {
		err = errors.New("wrong answer")
	}
	if err != nil {
		return fmt.Errorf("%s: %q, want %q: %w", what, got, want, err)
	}
	return nil
}

func get(ctx context.Context, from *cluster.Box, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := from.HTTPClient().Do(req)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(resp.Body)
	return string(data), errors.Join(err, resp.Body.Close())
}
