// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	snapshotclient "github.com/kubernetes-csi/external-snapshotter/client/v8/clientset/versioned"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/kube/kubetest"
)

// snapshots is the snapshot API of a test; the test is the snapshot-controller.
type snapshots struct {
	*cluster
	snapshotclient.Interface
}

// newSnapshots makes the server know snapshots: with the CRDs of the client's
// own module.
func newSnapshots(c *cluster) *snapshots {
	t := c.t
	t.Helper()
	path, err := c.server.Kubeconfig("snapshots", kubetest.AdminToken, "")
	c.must(err)
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	c.must(err)
	dyn, err := dynamic.NewForConfig(cfg)
	c.must(err)
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}",
		"github.com/kubernetes-csi/external-snapshotter/client/v8").Output()
	c.must(err)
	crds, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "config/crd/*snapshot.storage*.yaml"))
	c.must(err)
	if len(crds) != 6 {
		t.Fatalf("CRDs: %q", crds)
	}
	for _, file := range crds {
		data, err := os.ReadFile(file)
		c.must(err)
		var crd unstructured.Unstructured
		c.must(yaml.Unmarshal(data, &crd.Object))
		_, err = dyn.Resource(schema.GroupVersionResource{
			Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
		}).Create(t.Context(), &crd, metav1.CreateOptions{})
		if !apierrors.IsAlreadyExists(err) {
			c.must(err)
		}
	}
	client, err := snapshotclient.NewForConfig(cfg)
	c.must(err)
	c.await("snapshot API", func() bool {
		_, err := client.SnapshotV1().VolumeSnapshotContents().List(t.Context(), metav1.ListOptions{})
		return err == nil
	})
	return &snapshots{c, client}
}

// content makes the object that the snapshot-controller makes for a snapshot; node is
// "" when it names none.
func (s *snapshots) content(name, node string, source snapshotv1.VolumeSnapshotContentSource, annotations ...string) {
	s.t.Helper()
	var labels map[string]string
	if node != "" {
		labels = map[string]string{labelSnapshotNode: node}
	}
	notes := map[string]string{}
	for _, a := range annotations {
		k, v, _ := strings.Cut(a, "=")
		notes[k] = v
	}
	_, err := s.SnapshotV1().VolumeSnapshotContents().Create(s.t.Context(), &snapshotv1.VolumeSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{
			Name: s.ns + "-" + name, Labels: labels, Annotations: notes, Finalizers: []string{finalizerSnapshot},
		},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: s.driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Source: source,
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: s.ns, Name: name, UID: types.UID(s.ns + name)},
		},
	}, metav1.CreateOptions{})
	s.must(err)
}

func (s *snapshots) get(name string) *snapshotv1.VolumeSnapshotContent {
	s.t.Helper()
	content, err := s.SnapshotV1().VolumeSnapshotContents().Get(s.t.Context(), s.ns+"-"+name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return content
}

// drop deletes a content as the snapshot-controller does.
func (s *snapshots) drop(name string) {
	s.t.Helper()
	api, ctx := s.SnapshotV1().VolumeSnapshotContents(), s.t.Context()
	_, err := api.Patch(ctx, s.ns+"-"+name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"`+annSnapshotDeleting+`":"yes"}}}`), metav1.PatchOptions{})
	s.must(err)
	s.must(api.Delete(ctx, s.ns+"-"+name, metav1.DeleteOptions{}))
}

func TestSnapshotTakenAndDeleted(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	c.fake.FailNext("snapshot", status.Error(codes.Aborted, "busy"))
	c.fake.FailNext("delete-snapshot", status.Error(codes.FailedPrecondition, "in use"))
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	handle := c.bound("mine").Spec.CSI.VolumeHandle
	s.content("other", "another-node", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle})
	s.content("one", "me", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle})
	c.await("ready", func() bool {
		content := s.get("one")
		_, creating := content.Annotations[annSnapshotCreating]
		return ready(content) && !creating && content.Status.Error == nil
	})
	got := s.get("one").Status
	if *got.SnapshotHandle != "snap-snapshot-"+s.ns+"one" || *got.RestoreSize != gib || *got.CreationTime != 1700000000e9 {
		t.Errorf("status %+v", got)
	}
	if len(c.fake.snapshots) != 1 {
		t.Errorf("%d snapshots: those of other nodes were taken", len(c.fake.snapshots))
	}
	s.drop("one")
	c.await("deleted", func() bool { return s.get("one") == nil })
	if n := c.fake.count("delete-snapshot"); n < 2 || len(c.fake.snapshots) != 0 {
		t.Errorf("%d deletions, left %v", n, c.fake.snapshots)
	}
}

// A snapshot that cannot be taken says why; one that was there before its
// object is looked up.
func TestSnapshotFaultsAndFinds(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	c.run(c.config())
	missing := "no-such-volume"
	s.content("lost", "me", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &missing})
	c.await("error", func() bool {
		content := s.get("lost")
		return content.Status != nil && content.Status.Error != nil && *content.Status.Error.Message == "node me: volume no-such-volume not found"
	})
	s.drop("lost")
	c.await("gone", func() bool { return s.get("lost") == nil })

	c.claim("mine", "1Gi", "me")
	handle := c.bound("mine").Spec.CSI.VolumeHandle
	s.content("first", "me", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle})
	c.await("ready", func() bool { return ready(s.get("first")) })
	found := *s.get("first").Status.SnapshotHandle
	s.content("found", "me", snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &found})
	c.await("found", func() bool { return ready(s.get("found")) })
}

// A claim is restored from a snapshot that is ready, and waits for one that is not.
func TestProvisionFromSnapshot(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	handle := c.bound("mine").Spec.CSI.VolumeHandle
	s.content("snap", "me", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle})
	c.await("ready", func() bool { return ready(s.get("snap")) })
	c.claim("restored", "1Gi", "me", func(p *corev1.PersistentVolumeClaim) {
		p.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: new(snapshotGroup), Kind: "VolumeSnapshot", Name: "snap"}
	})
	if text := c.event("restored", "ProvisioningFailed"); !strings.Contains(text, `"snap" not found`) {
		t.Errorf("event %q", text)
	}
	// The snapshot-controller's part: the snapshot, bound to its content.
	api := s.SnapshotV1().VolumeSnapshots(c.ns)
	snap, err := api.Create(t.Context(), &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: "snap"},
		Spec:       snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: new("mine")}},
	}, metav1.CreateOptions{})
	c.must(err)
	_, err = s.SnapshotV1().VolumeSnapshotContents().Patch(t.Context(), c.ns+"-snap", types.MergePatchType,
		[]byte(`{"spec":{"volumeSnapshotRef":{"uid":"`+string(snap.UID)+`"}}}`), metav1.PatchOptions{})
	c.must(err)
	snap.Status = &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: new(c.ns + "-snap"), ReadyToUse: new(true)}
	_, err = api.UpdateStatus(t.Context(), snap, metav1.UpdateOptions{})
	c.must(err)
	restored := c.bound("restored")
	got := c.fake.volumes[restored.Spec.CSI.VolumeHandle].GetVolumeContentSource().GetSnapshot().GetSnapshotId()
	if want := *s.get("snap").Status.SnapshotHandle; got != want {
		t.Errorf("restored from %q, want %q", got, want)
	}
}
