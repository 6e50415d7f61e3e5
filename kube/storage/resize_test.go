// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	grow2 = `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`
	grow5 = `{"spec":{"resources":{"requests":{"storage":"50Gi"}}}}`
)

func (c *cluster) resizeState() corev1.ClaimResourceStatus {
	return c.getClaim("mine").Status.AllocatedResourceStatuses[corev1.ResourceStorage]
}

func (c *cluster) volumeSize() int64 {
	size := c.mine()[0].Spec.Capacity[corev1.ResourceStorage]
	return size.Value()
}

func TestResizeFileSystem(t *testing.T) {
	c := newCluster(t, wait)
	c.fake.FailNext("expand", status.Error(codes.Unavailable, "busy"))
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	c.bound("mine")
	c.patchClaim(grow2)
	c.await("left to the kubelet", func() bool { return c.resizeState() == corev1.PersistentVolumeClaimNodeResizePending })
	if size := c.volumeSize(); size != 2*gib {
		t.Errorf("volume has %d bytes", size)
	}
	claim := c.getClaim("mine")
	if size := claim.Status.Capacity[corev1.ResourceStorage]; size.Value() != gib {
		t.Errorf("claim says %v before the file system has grown", &size)
	}
	kinds := c.conditions()
	if !strings.Contains(kinds, "FileSystemResizePending") || strings.Contains(kinds, "Error") {
		t.Errorf("conditions %s", kinds)
	}
	c.event("mine", "FileSystemResizeRequired")
}

func TestResizeBlock(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("mine", "1Gi", "me", func(p *corev1.PersistentVolumeClaim) { p.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) })
	c.bound("mine")
	c.patchClaim(grow2)
	c.await("grown", func() bool {
		claim := c.getClaim("mine")
		size := claim.Status.Capacity[corev1.ResourceStorage]
		return size.Value() == 2*gib && c.resizeState() == "" && c.conditions() == ""
	})
	c.event("mine", "VolumeResizeSuccessful")
}

// A size that cannot be had is refused once, and a smaller one is then taken.
func TestResizeInfeasibleAndBack(t *testing.T) {
	c := newCluster(t, wait)
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	c.bound("mine")
	c.patchClaim(grow5)
	c.await("infeasible", func() bool { return c.resizeState() == corev1.PersistentVolumeClaimControllerResizeInfeasible })
	if text := c.event("mine", "VolumeResizeFailed"); !strings.Contains(text, "bytes left") {
		t.Errorf("event %q", text)
	}
	c.patchClaim(grow2)
	c.await("the smaller size", func() bool { return c.resizeState() == corev1.PersistentVolumeClaimNodeResizePending })
	// Once for each size, and again where another wrote the claim at that moment.
	if n := c.fake.count("expand"); n > 5 {
		t.Errorf("the driver was asked %d times", n)
	}
}

func TestModify(t *testing.T) {
	c := newCluster(t, wait)
	for name, driver := range map[string]string{"gold": c.driver, "foreign": "other.dev"} {
		_, err := c.StorageV1().VolumeAttributesClasses().Create(t.Context(), &storagev1.VolumeAttributesClass{
			ObjectMeta: metav1.ObjectMeta{Name: c.ns + "-" + name}, DriverName: driver,
			Parameters: map[string]string{"iops": "1000"},
		}, metav1.CreateOptions{})
		c.must(err)
	}
	cfg := c.config()
	cfg.CapacityPeriod = time.Second
	c.run(cfg)
	c.claim("mine", "1Gi", "me")
	pv := c.bound("mine")
	c.fake.FailNext("modify", status.Error(codes.Unavailable, "busy"))
	c.patchClaim(`{"spec":{"volumeAttributesClassName":"` + c.ns + `-gold"}}`)
	c.await("modified", func() bool {
		claim := c.getClaim("mine")
		return deref(claim.Status.CurrentVolumeAttributesClassName, "") == c.ns+"-gold" && claim.Status.ModifyVolumeStatus == nil &&
			c.conditions() == ""
	})
	if got := c.fake.mutable[pv.Spec.CSI.VolumeHandle]["iops"]; got != "1000" {
		t.Errorf("iops %q", got)
	}
	if got := deref(c.mine()[0].Spec.VolumeAttributesClassName, ""); got != c.ns+"-gold" {
		t.Errorf("volume has class %q", got)
	}
	c.patchClaim(`{"spec":{"volumeAttributesClassName":"` + c.ns + `-foreign"}}`)
	c.await("infeasible", func() bool {
		s := c.getClaim("mine").Status
		return s.ModifyVolumeStatus != nil && s.ModifyVolumeStatus.Status == corev1.PersistentVolumeClaimModifyVolumeInfeasible &&
			slices.ContainsFunc(s.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
				return strings.Contains(c.Message, "is of another driver: other.dev")
			})
	})
}
