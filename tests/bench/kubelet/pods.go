// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const namespace = "default"

// limit is how long pods may take to come or to go.
const limit = 3 * time.Minute

// pods makes pods and sees them become Ready and go.
type pods struct {
	client kubernetes.Interface
	stop   context.CancelFunc

	mu    sync.Mutex // guards what follows
	ready map[string]bool
	gone  map[string]bool
	woken chan struct{} // closed and replaced at each change
}

func watchPods(ctx context.Context, client kubernetes.Interface) (*pods, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pods{client: client, stop: cancel, ready: map[string]bool{}, gone: map[string]bool{}, woken: make(chan struct{})}
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
	inf := f.Core().V1().Pods().Informer()
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { p.see(obj, false) },
		UpdateFunc: func(_, obj any) { p.see(obj, false) },
		DeleteFunc: func(obj any) { p.see(obj, true) },
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch pods: %w", err)
	}
	f.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) {
		cancel()
		return nil, fmt.Errorf("watch pods: %w", ctx.Err())
	}
	return p, nil
}

func (p *pods) see(obj any, gone bool) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if gone {
		p.gone[pod.Name] = true
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			p.ready[pod.Name] = true
		}
	}
	close(p.woken)
	p.woken = make(chan struct{})
}

// await waits until all names are in a set.
func (p *pods) await(ctx context.Context, set map[string]bool, names []string, what string) error {
	for {
		p.mu.Lock()
		missing := 0
		for _, n := range names {
			if !set[n] {
				missing++
			}
		}
		woken := p.woken
		p.mu.Unlock()
		if missing == 0 {
			return nil
		}
		select {
		case <-woken:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods are not %s: %w", missing, len(names), what, ctx.Err())
		}
	}
}

// create makes pods of a kind on a node and returns how long it took until all are Ready.
func (p *pods) create(ctx context.Context, node string, k kind, names []string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	for _, name := range names {
		if _, err := p.client.CoreV1().Pods(namespace).Create(ctx, podOn(node, name, k), metav1.CreateOptions{}); err != nil {
			return 0, fmt.Errorf("create pod: %w", err)
		}
	}
	err := p.await(ctx, p.ready, names, "Ready")
	return time.Since(begin), err
}

// remove deletes pods and returns how long it took until all are gone.
func (p *pods) remove(ctx context.Context, names []string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	for _, name := range names {
		if err := p.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			return 0, fmt.Errorf("delete pod: %w", err)
		}
	}
	err := p.await(ctx, p.gone, names, "gone")
	return time.Since(begin), err
}

// kind is what a pod has beside its container.
type kind int

const (
	usual kind = iota // a volume with its account's token, as pods have unless they say otherwise
	bare              // no volume
)

func podOn(node, name string, k kind) *corev1.Pod {
	token := k != bare
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeSelector:                 map[string]string{corev1.LabelHostname: node},
			AutomountServiceAccountToken: &token,
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.local/busybox:1", ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"},
			}},
		},
	}
}
