// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// asker asks the Service by its name again and again, and says how it went.
const asker = `
apiVersion: v1
kind: Pod
metadata: {name: asker-%[1]s, labels: {app: asker}}
spec:
  nodeName: %[1]s
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: ` + cluster.BusyboxImage + `
      command: [sh, -c, "trap exit TERM; while :; do timeout 5 wget -qO- http://web.default.svc.cluster.local >/dev/null && echo answered || echo failed; sleep 0.1; done"]
`

// awayAnswers is how often everyone who asks is to be answered before and after each
// thing that happens while the API server is away.
const awayAnswers = 20

// serverAway takes the API server and its store away. Streams that run and connections
// that begin, by name, through the ClusterIP and the NodePort, do not notice, and neither
// do they when the agents are killed and start without it. When it is back, what
// was changed meanwhile holds.
func serverAway(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	var streams []string
	for i, n := range c.Nodes {
		if err := c.Apply(t.Context(), fmt.Sprintf(asker, n.Name)); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, fmt.Sprintf("stream%d", i))
		startStream(t, c, n, streams[i])
	}
	wait := fmt.Sprintf("--timeout=%s", 90*time.Second)
	if _, err := c.Kubectl(t.Context(), "wait", "--for=condition=Ready", "pod", "-l", "app=asker", wait); err != nil {
		t.Fatal(err)
	}
	before := frontends(t, c)
	outside := askFromOutside(t, c)
	outside.more(t, "with the API server")

	if err := c.KillServer(); err != nil {
		t.Fatal(err)
	}
	outside.more(t, "without the API server")
	for range 2 {
		for _, n := range c.Nodes {
			killRuntime(t, n)
		}
		outside.more(t, "with agents that started without it")
		if now := frontends(t, c); !slices.Equal(now, before) {
			t.Errorf("frontends and backends were %v\nand are %v", before, now)
		}
	}
	if err := c.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	changes(t, c)
	outside.more(t, "with the API server back")
	outside.end(t)
	for _, s := range streams {
		streamEnds(t, c, s)
	}
	for _, n := range c.Nodes {
		log := podLog(t, c, "asker-"+n.Name)
		if strings.Contains(log, "failed") || strings.Count(log, "answered") < awayAnswers {
			t.Errorf("asker on %s:\n%s", n.Name, log)
		}
	}
	if _, err := c.Kubectl(t.Context(), append([]string{"delete", "pod", "--timeout=60s", "asker-" + c.Nodes[0].Name, "asker-" + c.Nodes[1].Name}, streams...)...); err != nil {
		t.Error(err)
	}
}

// startStream lets a pod of the node read bytes through the ClusterIP for half a minute.
func startStream(t *testing.T, c *cluster.Cluster, n *cluster.Node, name string) {
	t.Helper()
	svc, err := c.Client.CoreV1().Services("default").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://%s/stream?bytes=%d", net.JoinHostPort(svc.Spec.ClusterIP, "80"), 3*streamBytes)
	err = c.Apply(t.Context(), fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  restartPolicy: Never
  containers: [{name: main, image: %q, args: ["-fetch=%s"]}]
`, name, n.Name, cluster.WebImage, url))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func(context.Context) error {
		if log := podLog(t, c, name); !strings.Contains(log, "stream begins") {
			return fmt.Errorf("no stream yet: %q", log)
		}
		return nil
	})
}

func streamEnds(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	eventually(t, 60*time.Second, func(ctx context.Context) error {
		p, err := c.Client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		if err == nil && p.Status.Phase != corev1.PodSucceeded {
			err = fmt.Errorf("%s is %s", name, p.Status.Phase)
		}
		return err
	})
	if log := podLog(t, c, name); !strings.Contains(log, fmt.Sprintf("bytes=%d", 3*streamBytes)) {
		t.Errorf("%s: %s", name, log)
	}
}

func podLog(t *testing.T, c *cluster.Cluster, pod string) string {
	t.Helper()
	out, err := c.Client.CoreV1().Pods("default").GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// frontends lists what every node serves, with the backends, as the agents tell it.
func frontends(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	var out []string
	for _, n := range c.Nodes {
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			text, err := n.Run(ctx, filepath.Join(c.Bin, "nodeagent"), "services", "-o", "json")
			if err != nil {
				return err
			}
			var all []struct {
				Addr, Protocol, Scope, State string
				Port                         int
				Backends                     []string
			}
			if err := json.Unmarshal([]byte(text), &all); err != nil {
				return err
			}
			for _, f := range all {
				slices.Sort(f.Backends)
				out = append(out, fmt.Sprint(n.Name, f))
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// outsider asks the NodePorts of all nodes from outside until its end.
type outsider struct {
	answered atomic.Int64
	cancel   context.CancelFunc
	done     chan error
}

func askFromOutside(t *testing.T, c *cluster.Cluster) *outsider {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	o := &outsider{cancel: cancel, done: make(chan error, 1)}
	go func() {
		var errs []error
		for ctx.Err() == nil {
			for _, n := range c.Nodes {
				for _, ip := range []string{n.IP4, n.IP6} {
					url := "http://" + net.JoinHostPort(ip, "30080")
					out, err := get(ctx, c.Control, url)
					if err = begins(url, out, "hello from web-", err); err == nil {
						o.answered.Add(1)
					} else if ctx.Err() == nil {
						errs = append(errs, err)
					}
				}
			}
		}
		o.done <- errors.Join(errs...)
	}()
	t.Cleanup(cancel)
	return o
}

// more waits until the outsider was answered some more times.
func (o *outsider) more(t *testing.T, when string) {
	t.Helper()
	t.Log(when)
	want := o.answered.Load() + awayAnswers
	eventually(t, 20*time.Second, func(context.Context) error {
		if got := o.answered.Load(); got < want {
			return fmt.Errorf("%s: from outside %d of %d answers", when, got, want)
		}
		return nil
	})
}

// end says what failed: nothing may.
func (o *outsider) end(t *testing.T) {
	t.Helper()
	o.cancel()
	if err := <-o.done; err != nil {
		t.Errorf("from outside: %v", err)
	}
}

// changes takes a Service away and makes another one, before the agents have found
// the API server again, and sees that both hold.
func changes(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), "delete", "service", "old", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(t.Context(), portService("new", 30082)); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		eventually(t, 60*time.Second, func(ctx context.Context) error {
			url := "http://" + net.JoinHostPort(n.IP4, "30082")
			out, err := get(ctx, c.Control, url)
			return begins(url, out, "hello from web-", err)
		})
		eventually(t, 60*time.Second, func(ctx context.Context) error {
			url := "http://" + net.JoinHostPort(n.IP4, "30081")
			if out, err := get(ctx, c.Control, url); err == nil {
				return fmt.Errorf("%s: %q, want nothing", url, out)
			}
			return nil
		})
	}
	if _, err := c.Kubectl(t.Context(), "delete", "service", "new", "--timeout=60s"); err != nil {
		t.Error(err)
	}
}

// portService leads a port of the nodes to the web servers.
func portService(name string, port int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: %d}]
`, name, port)
}
