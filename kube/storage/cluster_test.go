// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/kube/apiclient"
	"github.com/nodeagent/nodeagent/kube/kubetest"
)

var shared kubetest.Shared

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }

const gib = 1 << 30

// cluster is a real API server with the real controllers that bind and
// release volumes; the test is the scheduler.
type cluster struct {
	t *testing.T
	kubernetes.Interface
	server *kubetest.Server
	driver string // a name of its own per test
	class  string
	ns     string
	fake   *fakeDriver
}

func newCluster(t *testing.T, mode storagev1.VolumeBindingMode) *cluster {
	t.Helper()
	server, client := shared.Get(t)
	id := strings.ToLower(strings.NewReplacer("/", "", "_", "").Replace(t.Name()))
	c := &cluster{
		t: t, Interface: client, server: server, fake: newFakeDriver(10 * gib),
		driver: id + ".dev", class: id, ns: id,
	}
	c.must(server.StartControllers("persistentvolume-binder-controller",
		"persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller"))
	_, err := client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.ns}}, metav1.CreateOptions{})
	c.must(err)
	_, err = client.CoreV1().Nodes().Create(t.Context(),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "me"}}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		c.must(err)
	}
	c.makeClass(mode, map[string]string{"pool": "fast", paramFSType: "xfs"})
	return c
}

func (c *cluster) makeClass(mode storagev1.VolumeBindingMode, params map[string]string) {
	c.t.Helper()
	name := c.class
	_, err := c.StorageV1().StorageClasses().Create(c.t.Context(), &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: c.driver, Parameters: params,
		VolumeBindingMode: &mode, AllowVolumeExpansion: new(true), MountOptions: []string{"noatime"},
	}, metav1.CreateOptions{})
	c.must(err)
	c.t.Cleanup(func() {
		c.must(c.StorageV1().StorageClasses().Delete(context.Background(), name, metav1.DeleteOptions{}))
	})
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) config() Config {
	cfg := Default()
	cfg.Driver, cfg.ImmediateDelay, cfg.Timeout = c.driver, 10*time.Millisecond, 10*time.Second
	cfg.CSIDriver = false
	return cfg
}

// run starts the controllers of node "me" until the test ends.
func (c *cluster) run(cfg Config) *Controllers {
	c.t.Helper()
	return c.runOn("me", cfg)
}

func (c *cluster) runOn(node string, cfg Config) *Controllers {
	c.t.Helper()
	path, err := c.server.Kubeconfig("storage", kubetest.AdminToken, "")
	c.must(err)
	rest, err := clientcmd.BuildConfigFromFlags("", path)
	c.must(err)
	client, err := apiclient.New(rest)
	c.must(err)
	s, err := New(cfg, Deps{
		SELinuxMount: true,
		Log:          slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Node:         node, Client: client, Volumes: c.fake, Snapshots: c.fake, Groups: c.fake,
	})
	c.must(err)
	c.must(s.Start(c.t.Context()))
	c.t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			c.t.Error(err)
		}
	})
	return s
}

// claim makes a claim; node is who the scheduler chose, "" for nobody.
func (c *cluster) claim(name, size, node string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c.t.Helper()
	pvc := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &c.class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}
	if node != "" {
		pvc.Annotations = map[string]string{annSelectedNode: node}
	}
	for _, f := range change {
		f(pvc)
	}
	pvc, err := c.CoreV1().PersistentVolumeClaims(c.ns).Create(c.t.Context(), pvc, metav1.CreateOptions{})
	c.must(err)
	return pvc
}

func (c *cluster) getClaim(name string) *corev1.PersistentVolumeClaim {
	c.t.Helper()
	pvc, err := c.CoreV1().PersistentVolumeClaims(c.ns).Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	return pvc
}

func (c *cluster) deleteClaim(name string) {
	c.t.Helper()
	c.must(c.CoreV1().PersistentVolumeClaims(c.ns).Delete(c.t.Context(), name, metav1.DeleteOptions{}))
}

// bound waits until a claim is bound and returns its volume.
func (c *cluster) bound(name string) *corev1.PersistentVolume {
	c.t.Helper()
	c.await("claim "+name+" bound", func() bool { return c.getClaim(name).Status.Phase == corev1.ClaimBound })
	pv, err := c.CoreV1().PersistentVolumes().Get(c.t.Context(), c.getClaim(name).Spec.VolumeName, metav1.GetOptions{})
	c.must(err)
	return pv
}

// mine are the volumes of the test's class.
func (c *cluster) mine() []corev1.PersistentVolume {
	c.t.Helper()
	list, err := c.CoreV1().PersistentVolumes().List(c.t.Context(), metav1.ListOptions{})
	c.must(err)
	return slices.DeleteFunc(list.Items, func(pv corev1.PersistentVolume) bool { return pv.Spec.StorageClassName != c.class })
}

// patchClaim changes the claim "mine".
func (c *cluster) patchClaim(patch string) {
	c.t.Helper()
	_, err := c.CoreV1().PersistentVolumeClaims(c.ns).Patch(c.t.Context(), "mine", types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	c.must(err)
}

// event waits for an event of a claim and returns its text.
func (c *cluster) event(name, reason string) string {
	c.t.Helper()
	return c.eventIn(c.ns, name, reason)
}

func (c *cluster) eventIn(namespace, name, reason string) string {
	c.t.Helper()
	var text string
	c.await("event "+reason+" of "+name, func() bool {
		list, err := c.CoreV1().Events(namespace).List(c.t.Context(), metav1.ListOptions{})
		c.must(err)
		for _, e := range list.Items {
			if e.InvolvedObject.Name == name && e.Reason == reason && e.Source.Component == c.driver {
				text = e.Message
				return true
			}
		}
		return false
	})
	return text
}

func (c *cluster) await(what string, ok func() bool) {
	c.t.Helper()
	deadline, tick := time.After(30*time.Second), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			c.t.Fatalf("%s: never came", what)
		}
	}
}

// conditions are the types of the claim "mine"'s conditions, without those that are
// Kubernetes' own business.
func (c *cluster) conditions() string {
	var kinds []string
	for _, cond := range c.getClaim("mine").Status.Conditions {
		if cond.Type != corev1.PersistentVolumeClaimUnused {
			kinds = append(kinds, string(cond.Type))
		}
	}
	return strings.Join(kinds, " ")
}
