// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the agent says of its node is an event that kubectl describe finds.
func TestNodeEvents(t *testing.T) {
	c := newCluster(t)
	client, err := Connect(c.config(), "test")
	c.must(err)
	events := client.NodeEvents("grower")
	c.must(events.Start(t.Context()))
	t.Cleanup(func() { c.must(events.Stop(context.Background())) })
	for range 2 {
		events.Warn(ReasonMapGrown, "services from 1 to 2")
	}
	var last []corev1.Event
	for deadline := time.After(30 * time.Second); ; {
		list, err := c.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Node,involvedObject.name=grower,involvedObject.uid=grower,type=Warning,reason=" + ReasonMapGrown,
		})
		c.must(err)
		if last = list.Items; len(last) == 1 && last[0].Count == 2 && last[0].Message == "services from 1 to 2" && last[0].Source.Host == "grower" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("events: %+v", last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
