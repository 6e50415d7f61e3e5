// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// shared is the cluster that the tests use; those that disturb it leave it healthy.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	if cluster.Init() {
		return
	}
	os.Exit(run(m)) //nolint:forbidigo // a test program's main
}

func run(m *testing.M) int {
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		fmt.Println("NODEAGENT_SKIP_ROOT=1: no cluster, nothing to test")
		return 0
	}
	ctx := context.Background()
	c, err := cluster.Up(ctx, config("e2e"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the cluster:", err)
		return 1
	}
	shared = c
	code := m.Run()
	if code != 0 {
		if err := keep(c); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if err := end(ctx, c); err != nil {
		fmt.Println("--- FAIL: nothing is left")
		fmt.Println(err)
		return 1
	}
	fmt.Println("--- PASS: nothing is left")
	return code
}

// end sees that the nodes are quiet when the tests' pods are gone, ends the cluster and
// sees that nothing of it is left on the machine.
func end(ctx context.Context, c *cluster.Cluster) error {
	calm, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("a minute after the last pod"))
	defer cancel()
	errs := []error{c.RemoveDNS(calm)}
	for _, n := range c.Nodes {
		errs = append(errs, cluster.WaitFor(calm, n.Quiet))
	}
	traces, err := c.Traces()
	errs = append(errs, err, c.Down(ctx))
	if traces != nil {
		errs = append(errs, traces.Left(ctx))
	}
	return errors.Join(errs...)
}

// config is a cluster's from the environment: NODEAGENT_E2E_RUNTIME=containerd tries
// the tests on the peer.
func config(name string) cluster.Config {
	cfg := cluster.Default()
	cfg.Name, cfg.Bin, cfg.Progress = name, "../../bin", cluster.NewProgress(os.Stderr)
	if r := os.Getenv("NODEAGENT_E2E_RUNTIME"); r != "" {
		cfg.Runtime = r
	}
	return cfg
}

func keep(c *cluster.Cluster) error {
	dir := os.TempDir() + "/nodeagent-e2e-logs"
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(c.Logs())); err != nil {
		return err
	}
	return errors.New("the nodes' logs are kept in " + dir)
}

// onlyNodeagent skips what the peer does not do.
func onlyNodeagent(t *testing.T) {
	t.Helper()
	if shared.Runtime != cluster.RuntimeNodeagent {
		t.Skip("the peer's runtime")
	}
}

// slower is how much longer than on the machine that wrote them the tests may take.
const slower = 3

// eventually waits for cond; what it said last is the failure's reason.
func eventually(t *testing.T, within time.Duration, cond func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slower*within)
	defer cancel()
	if err := cluster.WaitFor(ctx, cond); err != nil {
		t.Fatal(err)
	}
}

// namespace makes a namespace that goes with the test, and with it all that is in it.
func namespace(t *testing.T) string {
	t.Helper()
	ns, err := shared.Client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := shared.Kubectl(context.Background(), "-n", ns.Name, "get", "pods,events", "-o", "wide")
			t.Logf("namespace %s at the end: %v\n%s", ns.Name, err, out)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := shared.Kubectl(ctx, "delete", "namespace", ns.Name, "--timeout=60s"); err != nil {
			t.Error(err)
		}
	})
	return ns.Name
}

// apply applies manifests to a namespace.
func apply(t *testing.T, ns, manifests string) {
	t.Helper()
	if err := shared.Apply(t.Context(), manifests, "-n", ns); err != nil {
		t.Fatal(err)
	}
}

// kubectl runs kubectl in a namespace.
func kubectl(t *testing.T, ns string, args ...string) string {
	t.Helper()
	out, err := shared.Kubectl(t.Context(), append([]string{"-n", ns}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// box runs a busybox pod until it is Ready: its script, or sleeping without.
func box(t *testing.T, ns, name, script string) {
	t.Helper()
	if script == "" {
		script = "trap exit TERM; while :; do sleep 3600 & wait; done"
	}
	apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: main, image: %q, stdin: true, command: [sh, -c, %q]}
`, name, name, cluster.BusyboxImage, script))
	ready(t, ns, name)
}

// web runs a pod of the demo's web server behind a dual-stack Service, both named web.
func web(t *testing.T, ns string) {
	t.Helper()
	apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: %q
      readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
`, cluster.WebImage))
	ready(t, ns, "web")
}

func ready(t *testing.T, ns, pod string) {
	t.Helper()
	kubectl(t, ns, "wait", "--for=condition=Ready", "--timeout=60s", "pod/"+pod)
}

// phase waits until a pod has reached a phase.
func phase(t *testing.T, ns, pod string, want corev1.PodPhase) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		p, err := shared.Client.CoreV1().Pods(ns).Get(ctx, pod, metav1.GetOptions{})
		if err == nil && p.Status.Phase != want {
			err = fmt.Errorf("pod %s is %s, not %s", pod, p.Status.Phase, want)
		}
		return err
	})
}

// has fails unless a text has all of the parts.
func has(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: no %q in\n%s", what, p, text)
		}
	}
}
