// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed" // the manifests
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const demoNamespace = "demo"

//go:embed demo.yaml
var demoManifests string

//go:embed demo-storage.yaml
var demoStorage string

// Demo puts the demo into the cluster, shows that all of it works, and says what
// is where. On containerd, which brings no storage, there is no volume in it.
func (c *Cluster) Demo(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("the demo did not work within 5 minutes"))
	defer cancel()
	storage := c.hasAgent()
	steps := []struct {
		name string
		do   func(context.Context) error
		skip bool
	}{
		{"apply the demo", c.applyDemo, false},
		{"web pods Ready", c.demoReady("web", 2), false},
		{"toolbox Ready", c.demoReady("toolbox", 1), false},
		{"both web pods answer on the ClusterIP", c.webAnswers, false},
		{"a pod reaches the Service by its name", c.toolboxAnswers, false},
		{"guest book Ready on its volume", c.demoReady("book", 1), !storage},
		{"its lines outlive its pod", c.bookRemembers, !storage},
	}
	for _, s := range steps {
		if s.skip {
			continue
		}
		if err := c.Progress.Step(s.name, func() error { return s.do(ctx) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, errors.Join(err, c.explain(ctx)))
		}
	}
	return c.tell(ctx)
}

func (c *Cluster) applyDemo(ctx context.Context) error {
	all := demoManifests
	if c.hasAgent() {
		all += "\n---\n" + demoStorage
	}
	return c.Apply(ctx, all)
}

// pods lists the demo's pods whose name begins so.
func (c *Cluster) demoPods(ctx context.Context, prefix string) ([]corev1.Pod, error) {
	all, err := c.Client.CoreV1().Pods(demoNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var out []corev1.Pod
	for _, p := range all.Items {
		if strings.HasPrefix(p.Name, prefix) {
			out = append(out, p)
		}
	}
	return out, nil
}

func (c *Cluster) demoReady(prefix string, want int) func(context.Context) error {
	return func(ctx context.Context) error {
		return waitFor(ctx, func(ctx context.Context) error {
			pods, err := c.demoPods(ctx, prefix)
			if err != nil {
				return err
			}
			ready := 0
			for _, p := range pods {
				if podReady(&p) && p.DeletionTimestamp == nil {
					ready++
				}
			}
			if ready != want {
				return fmt.Errorf("%d of %d pods %s are Ready", ready, want, prefix)
			}
			return nil
		}, c.nodePrograms()...)
	}
}

func podReady(p *corev1.Pod) bool {
	for _, cond := range p.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// nodePrograms are the programs that have to run for anything to become Ready.
func (c *Cluster) nodePrograms() []*Proc {
	var out []*Proc
	for _, n := range c.Nodes {
		out = append(out, n.Kubelet, n.Runtime)
	}
	return out
}

func (c *Cluster) service(ctx context.Context, name string) (*corev1.Service, error) {
	return c.Client.CoreV1().Services(demoNamespace).Get(ctx, name, metav1.GetOptions{})
}

// webAnswers asks on every ClusterIP of the web service from a node until both pods have answered.
func (c *Cluster) webAnswers(ctx context.Context) error {
	svc, err := c.service(ctx, "web")
	if err != nil {
		return err
	}
	for _, ip := range svc.Spec.ClusterIPs {
		seen := map[string]bool{}
		err := waitFor(ctx, func(ctx context.Context) error {
			body, err := c.get(ctx, http.MethodGet, "http://"+net.JoinHostPort(ip, "80")+"/", "")
			if err != nil {
				return err
			}
			var who string
			if _, err := fmt.Sscanf(body, "hello from %s", &who); err != nil {
				return fmt.Errorf("odd answer %q", body)
			}
			if seen[who] = true; len(seen) < 2 {
				return fmt.Errorf("only %d pod answers on %s", len(seen), ip)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// get asks from the first node.
func (c *Cluster) get(ctx context.Context, method, url, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := c.Nodes[0].HTTPClient().Do(req)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return "", fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, data)
	}
	return string(data), nil
}

func (c *Cluster) toolboxAnswers(ctx context.Context) error {
	return waitFor(ctx, func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "-n", demoNamespace, "exec", "toolbox", "--", "wget", "-qO-", "http://web")
		if err == nil && !strings.HasPrefix(out, "hello from web-") {
			err = fmt.Errorf("odd answer %q", out)
		}
		return err
	})
}

// bookRemembers writes a line, deletes the pod and reads the line from its successor.
func (c *Cluster) bookRemembers(ctx context.Context) error {
	svc, err := c.service(ctx, "book")
	if err != nil {
		return err
	}
	url := "http://" + svc.Spec.ClusterIP + "/book"
	line := "written before the pod was deleted, " + time.Now().Format(time.RFC3339)
	if err := waitFor(ctx, func(ctx context.Context) error {
		_, err := c.get(ctx, http.MethodPost, url, line)
		return err
	}); err != nil {
		return err
	}
	pods := c.Client.CoreV1().Pods(demoNamespace)
	old, err := pods.Get(ctx, "book-0", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if err := pods.Delete(ctx, "book-0", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return waitFor(ctx, func(ctx context.Context) error {
		p, err := pods.Get(ctx, "book-0", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.UID == old.UID || !podReady(p) {
			return errors.New("book-0 has no Ready successor yet")
		}
		book, err := c.get(ctx, http.MethodGet, url, "")
		if err == nil && !strings.Contains(book, line) {
			err = fmt.Errorf("the book of the new pod says %q", book)
		}
		return err
	}, c.nodePrograms()...)
}

// explain says what is known about a demo that does not work.
func (c *Cluster) explain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	pods, err1 := c.Kubectl(ctx, "-n", demoNamespace, "get", "pods,pvc", "-o", "wide")
	events, err2 := c.Kubectl(ctx, "-n", demoNamespace, "events", "--types=Warning")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return fmt.Errorf("the demo as it is:\n%s\n%s", pods, events)
}

// tell prints what is where.
func (c *Cluster) tell(ctx context.Context) error {
	what := [][]string{{"get", "nodes", "-o", "wide"}, {"-n", demoNamespace, "get", "pods", "-o", "wide"}, {"-n", demoNamespace, "get", "services"}}
	if c.hasAgent() {
		what = append(what, []string{"-n", demoNamespace, "get", "persistentvolumeclaims"})
	}
	for _, args := range what {
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			return err
		}
		c.Progress.Say("\n%s", strings.TrimRight(out, "\n"))
	}
	c.Progress.Say(`
Try
  kubectl -n demo logs -f deployment/web
  kubectl -n demo exec toolbox -- wget -qO- http://web
  kubectl -n demo exec -it toolbox -- sh
  kubectl -n demo port-forward service/web 8080:80`)
	return nil
}
