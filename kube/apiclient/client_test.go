// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/kube/kubetest"
)

var shared kubetest.Shared

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }

// connect is a client of a running server, beside Kubernetes' own.
func connect(t *testing.T) (*Client, kubernetes.Interface) {
	t.Helper()
	server, full := shared.Get(t)
	path, err := server.Kubeconfig("apiclient", kubetest.AdminToken, "")
	if err != nil {
		t.Fatal(err)
	}
	rc, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	rc.QPS, rc.Burst = 500, 500
	c, err := New(rc)
	if err != nil {
		t.Fatal(err)
	}
	return c, full
}

func TestEventsAreCounted(t *testing.T) {
	c, full := connect(t)
	r := c.NewRecorder(corev1.EventSource{Component: "counter", Host: "me"})
	done := make(chan struct{})
	go func() { r.Run(t.Context()); close(done) }()
	t.Cleanup(func() { <-done })

	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c", UID: "u1"}}
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", UID: "u2"}}
	for range 3 {
		r.Event(claim, corev1.EventTypeWarning, "Full", "no room")
	}
	r.Eventf(claim, corev1.EventTypeNormal, "Grown", "to %d", 7)
	for i := range eventBurst + 10 { // a flood about one object
		r.Eventf(volume, corev1.EventTypeNormal, "Noise", "%d", i)
	}
	r.Event(claim, corev1.EventTypeNormal, "Last", "")
	want := map[string]int32{"Full": 3, "Grown": 1, "Noise": eventBurst, "Last": 1}
	have := map[string]int32{}
	for deadline := time.After(30 * time.Second); fmt.Sprint(have) != fmt.Sprint(want); {
		select {
		case <-deadline:
			t.Fatalf("events: %v, want %v", have, want)
		case <-time.After(20 * time.Millisecond):
		}
		list, err := full.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		clear(have)
		for _, e := range list.Items {
			if e.Source.Component != "counter" || e.Source.Host != "me" {
				continue
			}
			have[e.Reason] += e.Count
			if k := e.InvolvedObject.Kind; k != "PersistentVolumeClaim" && k != "PersistentVolume" || e.InvolvedObject.APIVersion != "v1" {
				t.Fatalf("event %+v", e)
			}
		}
	}
}

// TestVerbs drives one kind through all verbs.
func TestVerbs(t *testing.T) {
	c, _ := connect(t)
	ctx, ns := t.Context(), "default"
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	made, err := c.Services(ns).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "verbs", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	must(err)
	watch, err := c.Services("").Watch(ctx, metav1.ListOptions{LabelSelector: "a=b", ResourceVersion: made.ResourceVersion})
	must(err)
	defer watch.Stop()
	made.Labels["c"] = "d"
	_, err = c.Services(ns).Update(ctx, made, metav1.UpdateOptions{})
	must(err)
	patched, err := c.Services(ns).Patch(ctx, "verbs", types.MergePatchType, []byte(`{"metadata":{"labels":{"e":"f"}}}`))
	must(err)
	if len(patched.Labels) != 3 {
		t.Errorf("labels: %v", patched.Labels)
	}
	list, err := c.Services("").List(ctx, metav1.ListOptions{LabelSelector: "c=d"})
	must(err)
	if len(list.Items) != 1 {
		t.Errorf("listed: %d", len(list.Items))
	}
	if e := <-watch.ResultChan(); e.Type != "MODIFIED" {
		t.Errorf("watched: %+v", e)
	}
	must(c.Services(ns).Delete(ctx, "verbs", metav1.DeleteOptions{}))
	if none, err := c.Services(ns).Get(ctx, "verbs", metav1.GetOptions{}); !apierrors.IsNotFound(err) || none != nil {
		t.Errorf("after its deletion: %v, %v", none, err)
	}
	if ok, err := c.HasResource(ctx, corev1.SchemeGroupVersion, "pods"); err == nil || ok {
		t.Errorf("there is no /apis//v1: %v %v", ok, err)
	}
	if ok, err := c.HasResource(ctx, storagev1.SchemeGroupVersion, "storageclasses"); err != nil || !ok {
		t.Errorf("storage classes: %v %v", ok, err)
	}
}
