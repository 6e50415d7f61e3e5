// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	wait      = storagev1.VolumeBindingWaitForFirstConsumer
	immediate = storagev1.VolumeBindingImmediate
)

func TestProvisionForThisNode(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("other", "1Gi", "another-node")
	c.claim("nobody", "1Gi", "")
	claim := c.claim("mine", "1Gi", "me")
	pv := c.bound("mine")

	if pv.Name != "pvc-"+string(claim.UID) {
		t.Errorf("name %s", pv.Name)
	}
	checkVolume(c, pv)
	c.event("mine", "ProvisioningSucceeded")
	if n := len(c.fake.ids()); n != 1 {
		t.Errorf("%d volumes: claims of other nodes were served", n)
	}
	c.deleteClaim("mine")
	c.await("volume deleted", func() bool { return len(c.mine()) == 0 && len(c.fake.ids()) == 0 })
}

// checkVolume looks at what a PersistentVolume says.
func checkVolume(c *cluster, pv *corev1.PersistentVolume) {
	t := c.t
	t.Helper()
	if pv.Spec.CSI.VolumeHandle != "vol-"+pv.Name || pv.Spec.CSI.Driver != c.driver {
		t.Errorf("volume %s has source %+v", pv.Name, pv.Spec.CSI)
	}
	term := pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
	if term.Key != Default().TopologyKey || term.Values[0] != "me" {
		t.Errorf("node affinity %+v", term)
	}
	node, err := c.CoreV1().Nodes().Get(t.Context(), "me", metav1.GetOptions{})
	c.must(err)
	if got := pv.Annotations[AnnotationNodeUID]; got != string(node.UID) {
		t.Errorf("node UID %q, want %q", got, node.UID)
	}
	if size := pv.Spec.Capacity[corev1.ResourceStorage]; size.Value() != gib || pv.Spec.CSI.FSType != "xfs" || pv.Spec.MountOptions[0] != "noatime" {
		t.Errorf("size %v, file system %q, mount options %q", size, pv.Spec.CSI.FSType, pv.Spec.MountOptions)
	}
	req := c.fake.volumes[pv.Spec.CSI.VolumeHandle]
	if req.Parameters["pool"] != "fast" || req.Parameters[paramFSType] != "" || req.Parameters[paramPVCName] != "mine" {
		t.Errorf("parameters %v", req.Parameters)
	}
	if mode := req.VolumeCapabilities[0].GetAccessMode().GetMode(); mode != csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER {
		t.Errorf("access mode %v", mode)
	}
}

func TestProvisionGivesBackWhenFull(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("big", "20Gi", "me")
	if text := c.event("big", "ProvisioningFailed"); !strings.Contains(text, "node me: pool default has 10737418240 bytes left") {
		t.Errorf("event %q", text)
	}
	c.await("selected node removed", func() bool { return c.getClaim("big").Annotations[annSelectedNode] == "" })
	if n := len(c.mine()); n != 0 {
		t.Errorf("%d volumes", n)
	}
}

func TestProvisionAgainAfterFaults(t *testing.T) {
	c := newCluster(t, wait)
	c.fake.FailNext("create", status.Error(codes.Unavailable, "pool is not mounted"))
	c.fake.FailNext("create", status.Error(codes.Internal, "mkfs: no"))
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	c.bound("mine")
	if n := c.fake.count("create"); n != 3 {
		t.Errorf("%d calls", n)
	}
	c.fake.FailNext("delete", status.Error(codes.FailedPrecondition, "is mounted"))
	c.deleteClaim("mine")
	c.await("volume deleted", func() bool { return len(c.mine()) == 0 && len(c.fake.ids()) == 0 })
}

// A claim that goes away while its volume may be in the making leaves nothing.
func TestProvisionClaimGoesAway(t *testing.T) {
	c := newCluster(t, wait)
	for range 3 {
		c.fake.FailNext("create", status.Error(codes.DeadlineExceeded, "still at it"))
	}
	c.run(c.config())
	c.claim("brief", "1Gi", "me")
	c.event("brief", "ProvisioningFailed")
	c.deleteClaim("brief")
	c.await("volume made and deleted", func() bool { return c.fake.count("delete") > 0 && len(c.mine()) == 0 })
	if ids := c.fake.ids(); len(ids) != 0 {
		t.Errorf("volumes left: %v", ids)
	}
}

func TestProvisionImmediate(t *testing.T) {
	c := newCluster(t, immediate)
	c.run(c.config())
	c.claim("now", "1Gi", "")
	c.bound("now")
	if node := c.getClaim("now").Annotations[annSelectedNode]; node != "me" {
		t.Errorf("selected node %q", node)
	}
	c.claim("big", "20Gi", "") // does not fit: another node may take it
	c.claim("later", "1Gi", "")
	c.bound("later")
	if node := c.getClaim("big").Annotations[annSelectedNode]; node != "" {
		t.Errorf("selected node %q of a claim that does not fit", node)
	}
}

func TestProvisionRefusesUnknownParameters(t *testing.T) {
	c := newCluster(t, wait)
	c.class += "-secret"
	c.makeClass(wait, map[string]string{"csi.storage.k8s.io/node-stage-secret-name": "s"})
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	want := "parameter csi.storage.k8s.io/node-stage-secret-name: the driver takes no secrets"
	if text := c.event("mine", "ProvisioningFailed"); !strings.Contains(text, want) {
		t.Errorf("event %q", text)
	}
}

func TestProvisionClone(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("source", "1Gi", "me")
	source := c.bound("source")
	c.claim("clone", "1Gi", "me", func(p *corev1.PersistentVolumeClaim) {
		p.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "source"}
	})
	clone := c.bound("clone")
	got := c.fake.volumes[clone.Spec.CSI.VolumeHandle].GetVolumeContentSource().GetVolume().GetVolumeId()
	if got != source.Spec.CSI.VolumeHandle {
		t.Errorf("cloned from %q", got)
	}
}

// A volume that is to be kept stays, and its object is not held up.
func TestRetainedVolumeStays(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	pv := c.bound("mine")
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	_, err := c.CoreV1().PersistentVolumes().Update(t.Context(), pv, metav1.UpdateOptions{})
	c.must(err)
	c.await("finalizer removed", func() bool {
		now, err := c.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		c.must(err)
		return !slices.Contains(now.Finalizers, finalizerVolume)
	})
	c.deleteClaim("mine")
	c.await("released", func() bool { return c.mine()[0].Status.Phase == corev1.VolumeReleased })
	c.must(c.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	c.await("object deleted", func() bool { return len(c.mine()) == 0 })
	if n := c.fake.count("delete"); n != 0 {
		t.Errorf("the driver was asked to delete %d times", n)
	}
}

func TestCapacityFollows(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	published := func() []storagev1.CSIStorageCapacity {
		list, err := c.StorageV1().CSIStorageCapacities(metav1.NamespaceSystem).List(t.Context(),
			metav1.ListOptions{LabelSelector: labelDriver + "=" + c.driver})
		c.must(err)
		return list.Items
	}
	capacityIs := func(bytes int64) func() bool {
		return func() bool { l := published(); return len(l) == 1 && l[0].Capacity.Value() == bytes }
	}
	c.await("capacity published", capacityIs(10*gib))
	if o := published()[0]; o.StorageClassName != c.class || o.NodeTopology.MatchLabels[Default().TopologyKey] != "me" || o.OwnerReferences[0].Kind != "Node" {
		t.Errorf("object %+v", o)
	}
	c.claim("mine", "1Gi", "me")
	c.await("capacity after a volume", capacityIs(9*gib)) // long before the period is over
	c.deleteClaim("mine")
	c.await("capacity after its deletion", capacityIs(10*gib))
	first := c.class
	c.class += "-2"
	c.makeClass(wait, nil)
	c.await("a second class", func() bool { return len(published()) == 2 })
	c.must(c.StorageV1().StorageClasses().Delete(t.Context(), first, metav1.DeleteOptions{}))
	c.await("a class less", func() bool { return len(published()) == 1 })
	_, err := c.StorageV1().StorageClasses().Create(t.Context(),
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: first}, Provisioner: c.driver}, metav1.CreateOptions{})
	c.must(err)
}

func TestDriverObject(t *testing.T) {
	c := newCluster(t, wait)
	ctx, api := t.Context(), c.StorageV1().CSIDrivers()
	other := DriverObject(c.driver, true)
	other.Spec.AttachRequired = new(true)
	_, err := api.Create(ctx, other, metav1.CreateOptions{})
	c.must(err)
	cfg := c.config()
	cfg.CSIDriver = true
	s := c.run(cfg)
	right := func() bool {
		o, err := api.Get(ctx, c.driver, metav1.GetOptions{})
		return err == nil && !*o.Spec.AttachRequired && *o.Spec.PodInfoOnMount && *o.Spec.SELinuxMount &&
			*o.Spec.StorageCapacity && *o.Spec.FSGroupPolicy == storagev1.FileFSGroupPolicy && len(o.Spec.VolumeLifecycleModes) == 2
	}
	c.await("replaced", right)
	o, err := api.Get(ctx, c.driver, metav1.GetOptions{})
	c.must(err)
	o.Spec.PodInfoOnMount, o.Spec.StorageCapacity = new(false), new(false)
	_, err = api.Update(ctx, o, metav1.UpdateOptions{})
	c.must(err)
	c.must(s.ensureDriverObject(ctx))
	o, err = api.Get(ctx, c.driver, metav1.GetOptions{})
	c.must(err)
	if !*o.Spec.PodInfoOnMount || *o.Spec.StorageCapacity {
		t.Errorf("%+v: want podInfoOnMount repaired and storageCapacity as a person set it", o.Spec)
	}
	c.must(api.Delete(ctx, c.driver, metav1.DeleteOptions{}))
	c.must(s.ensureDriverObject(ctx))
	if !right() {
		t.Error("not made again after its deletion")
	}
}
