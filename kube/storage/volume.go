// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/accessmodes"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volumeName is the name of a claim's volume, and of its PersistentVolume.
func volumeName(claim *corev1.PersistentVolumeClaim) string { return "pvc-" + string(claim.UID) }

func className(claim *corev1.PersistentVolumeClaim) string {
	if name, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	return deref(claim.Spec.StorageClassName, "")
}

// sizeOf is a size for people.
func sizeOf(bytes int64) string { return resource.NewQuantity(bytes, resource.BinarySI).String() }

// createRequest is what a claim asks of the driver.
func (p *provisioner) createRequest(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (*csi.CreateVolumeRequest, error) {
	if err := checkParameters(class); err != nil {
		return nil, err
	}
	caps, err := capabilities(claim.Spec.AccessModes, claim.Spec.VolumeMode, class)
	if err != nil {
		return nil, err
	}
	source, err := p.contentSource(ctx, claim)
	if err != nil {
		return nil, err
	}
	mutable, err := p.mutableParameters(ctx, deref(claim.Spec.VolumeAttributesClassName, ""))
	if err != nil {
		return nil, err
	}
	params := driverParameters(class.Parameters)
	maps.Copy(params, map[string]string{
		paramPVCName: claim.Name, paramPVCSpace: claim.Namespace, paramPVName: volumeName(claim),
	})
	size, limit := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Spec.Resources.Limits[corev1.ResourceStorage]
	here := []*csi.Topology{p.topology()}
	return &csi.CreateVolumeRequest{
		Name:                      volumeName(claim),
		CapacityRange:             &csi.CapacityRange{RequiredBytes: size.Value(), LimitBytes: limit.Value()},
		VolumeCapabilities:        caps,
		Parameters:                params,
		MutableParameters:         mutable,
		VolumeContentSource:       source,
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: here, Preferred: here},
	}, nil
}

// checkParameters refuses what would be silently without effect.
func checkParameters(class *storagev1.StorageClass) error {
	for _, key := range slices.Sorted(maps.Keys(class.Parameters)) {
		if strings.HasPrefix(key, prefixParameter) && key != paramFSType {
			return fmt.Errorf("storage class %s: parameter %s: the driver takes no secrets and no such setting", class.Name, key)
		}
	}
	return nil
}

// driverParameters are a class's parameters without those meant for
// Kubernetes.
func driverParameters(params map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range params {
		if !strings.HasPrefix(k, prefixParameter) {
			out[k] = v
		}
	}
	return out
}

// capabilities are a claim's access modes in the driver's words; class may be
// nil.
func capabilities(modes []corev1.PersistentVolumeAccessMode, mode *corev1.PersistentVolumeMode, class *storagev1.StorageClass) ([]*csi.VolumeCapability, error) {
	if len(modes) == 0 {
		modes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	}
	var out []*csi.VolumeCapability
	for _, m := range modes {
		am, err := accessmodes.ToCSIAccessMode([]corev1.PersistentVolumeAccessMode{m}, true)
		if err != nil {
			return nil, fmt.Errorf("access mode %s: %w", m, err)
		}
		c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: am}}
		if deref(mode, corev1.PersistentVolumeFilesystem) == corev1.PersistentVolumeBlock {
			c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		} else {
			m := &csi.VolumeCapability_MountVolume{}
			if class != nil {
				m.FsType, m.MountFlags = class.Parameters[paramFSType], class.MountOptions
			}
			c.AccessType = &csi.VolumeCapability_Mount{Mount: m}
		}
		out = append(out, c)
	}
	return out, nil
}

// persistentVolume is the object that binds the driver's volume to its claim
// and to this node.
func (p *provisioner) persistentVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass,
	req *csi.CreateVolumeRequest, vol *csi.Volume,
) *corev1.PersistentVolume {
	bytes := vol.GetCapacityBytes()
	if bytes == 0 {
		bytes = req.CapacityRange.RequiredBytes
	}
	attrs := map[string]string{attrIdentity: p.cfg.Driver + "-" + p.deps.Node}
	maps.Copy(attrs, vol.GetVolumeContext())
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        volumeName(claim),
			Annotations: map[string]string{annProvisionedBy: p.cfg.Driver},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(bytes, resource.BinarySI)},
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    claim.Spec.VolumeMode,
			MountOptions:                  class.MountOptions,
			StorageClassName:              class.Name,
			VolumeAttributesClassName:     claim.Spec.VolumeAttributesClassName,
			PersistentVolumeReclaimPolicy: deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			NodeAffinity:                  p.nodeAffinity(vol.GetAccessibleTopology()),
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, ResourceVersion: claim.ResourceVersion,
			},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: p.cfg.Driver, VolumeHandle: vol.GetVolumeId(), VolumeAttributes: attrs,
			}},
		},
	}
	if deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) == corev1.PersistentVolumeFilesystem {
		pv.Spec.CSI.FSType = class.Parameters[paramFSType]
	}
	if pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		pv.Finalizers = []string{finalizerVolume}
	}
	if uid := p.nodeUID(ctx); uid != "" {
		pv.Annotations[AnnotationNodeUID] = uid
	}
	return pv
}

// nodeAffinity is where the volume can be used: what the driver says, or here.
func (c *Controllers) nodeAffinity(where []*csi.Topology) *corev1.VolumeNodeAffinity {
	if len(where) == 0 {
		where = []*csi.Topology{c.topology()}
	}
	var terms []corev1.NodeSelectorTerm
	for _, t := range where {
		var term corev1.NodeSelectorTerm
		for _, key := range slices.Sorted(maps.Keys(t.GetSegments())) {
			term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{
				Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{t.GetSegments()[key]},
			})
		}
		terms = append(terms, term)
	}
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

// nodeUID is the UID of this node's object, "" if it cannot be had: a volume
// without it is as good, only a reused name cannot be told.
func (c *Controllers) nodeUID(ctx context.Context) string {
	n, err := c.client.Nodes().Get(ctx, c.deps.Node, metav1.GetOptions{})
	if err != nil {
		c.log.WarnContext(ctx, "node object cannot be read, its UID is not recorded", "err", err)
		return ""
	}
	return string(n.UID)
}

// ownVolume reports whether a PersistentVolume is the driver's and on this
// node.
func (c *Controllers) ownVolume(obj any) bool {
	pv, ok := obj.(*corev1.PersistentVolume)
	return ok && c.nodeOf(pv) == c.deps.Node
}

// nodeOf is the node that a PersistentVolume of the driver's is on; empty for
// others.
func (c *Controllers) nodeOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != c.cfg.Driver || pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, term := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == c.cfg.TopologyKey && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// byHandle indexes the driver's PersistentVolumes by its name of the volume.
const byHandle = "handle"

func (c *Controllers) handleOf(obj any) ([]string, error) {
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok || pv.Spec.CSI == nil || pv.Spec.CSI.Driver != c.cfg.Driver {
		return nil, nil
	}
	return []string{pv.Spec.CSI.VolumeHandle}, nil
}

// where says whether the volume of that handle is on this node; known is false
// when there is no object for it.
func (c *Controllers) where(handle string) (here, known bool) {
	objs, err := c.volumes.GetIndexer().ByIndex(byHandle, handle)
	if err != nil || len(objs) == 0 {
		return false, false
	}
	return slices.ContainsFunc(objs, c.ownVolume), true
}
