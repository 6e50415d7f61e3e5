// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// What a Service asks for by annotations reaches the data path, and so does
// what other Nodes say of direct return; the own Node says it, and takes it back.
func TestAnnotationsAreHeard(t *testing.T) {
	c := newCluster(t)
	c.node("me", "192.0.2.1", "10.1.0.0/24")
	c.node("other", "192.0.2.2", "10.1.1.0/24")
	c.service("web")
	asked := map[string]string{service.LoadBalancing: "maglev", service.ExternalMode: service.ModeDSR}
	_, err := c.CoreV1().Services(c.ns).Patch(t.Context(), "web", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"nodeagent.dev/load-balancing":"maglev","nodeagent.dev/external-mode":"dsr"}}}`), metav1.PatchOptions{})
	c.must(err)
	_, err = c.CoreV1().Nodes().Patch(t.Context(), "other", types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"nodeagent.dev/dsr":"true"}}}`), metav1.PatchOptions{})
	c.must(err)

	client, err := Connect(c.config(), "test")
	c.must(err)
	run := func(dsr bool) (*record, *Watcher) {
		r := newRecord()
		deps := r.deps(t)
		deps.Client, deps.DSR = client, dsr
		w := startWatcher(t, c.config(), deps)
		c.must(w.Synced(t.Context()))
		return r, w
	}
	r, w := run(true)
	r.await(t, "annotations", func(r *record) bool {
		s := r.services[nameOf(c.ns+"/web")].Service
		if s == nil || len(r.peers) != 1 || !r.peers[0].DSR {
			return false
		}
		for k, v := range asked {
			if s.Annotations[k] != v {
				return false
			}
		}
		return true
	})
	c.awaitNode("me", func(n *corev1.Node) bool { return n.Annotations[AnnotationDSR] == "true" })
	c.must(w.Stop(t.Context()))
	run(false)
	c.awaitNode("me", func(n *corev1.Node) bool { _, said := n.Annotations[AnnotationDSR]; return !said })
}

func (c *cluster) awaitNode(name string, ok func(*corev1.Node) bool) {
	c.t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		n, err := c.CoreV1().Nodes().Get(c.t.Context(), name, metav1.GetOptions{})
		c.must(err)
		if ok(n) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			c.t.Fatalf("node %s stays annotated with %v", name, n.Annotations)
		}
	}
}
