// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// contentSource is what a claim's volume begins with; nil: nothing.
func (p *provisioner) contentSource(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*csi.VolumeContentSource, error) {
	ref := claim.Spec.DataSourceRef
	if ref == nil {
		return nil, nil
	}
	if ref.Namespace != nil && *ref.Namespace != "" && *ref.Namespace != claim.Namespace {
		return nil, fmt.Errorf("data source %s %s/%s: is in another namespace, which is not supported", ref.Kind, *ref.Namespace, ref.Name)
	}
	group := deref(ref.APIGroup, "")
	switch {
	case group == "" && ref.Kind == "PersistentVolumeClaim":
		handle, err := p.cloneHandle(claim.Namespace, ref.Name)
		if err != nil {
			return nil, fmt.Errorf("data source PersistentVolumeClaim %s: %w", ref.Name, err)
		}
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: handle},
		}}, nil
	case group == snapshotGroup && ref.Kind == "VolumeSnapshot":
		handle, err := p.snapshotHandle(ctx, claim.Namespace, ref.Name)
		if err != nil {
			return nil, fmt.Errorf("data source VolumeSnapshot %s: %w", ref.Name, err)
		}
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: handle},
		}}, nil
	default:
		// A volume populator will bind the claim.
		return nil, fmt.Errorf("data source %s of group %q: is not one that the driver can read", ref.Kind, group)
	}
}

// cloneHandle is the driver's name of the volume that a claim is bound to.
func (p *provisioner) cloneHandle(namespace, name string) (string, error) {
	source, ok, err := get[*corev1.PersistentVolumeClaim](p.claims, namespace+"/"+name)
	if err != nil {
		return "", err
	}
	if !ok || source.Spec.VolumeName == "" || source.Status.Phase != corev1.ClaimBound {
		return "", fmt.Errorf("is not bound to a volume")
	}
	pv, ok, err := get[*corev1.PersistentVolume](p.volumes, source.Spec.VolumeName)
	if err != nil {
		return "", err
	}
	if !ok || pv.Spec.CSI == nil || pv.Spec.CSI.Driver != p.cfg.Driver {
		return "", fmt.Errorf("its volume %s is not of driver %s", source.Spec.VolumeName, p.cfg.Driver)
	}
	return pv.Spec.CSI.VolumeHandle, nil
}

// errForeignClass says that a class is of another driver, for good: that field of a
// class never changes.
var errForeignClass = errors.New("is of another driver")

// mutableParameters are those of a VolumeAttributesClass; nil without one.
func (c *Controllers) mutableParameters(ctx context.Context, name string) (map[string]string, error) {
	if name == "" {
		return nil, nil
	}
	class, err := c.client.VolumeAttributesClasses().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("volume attributes class: %w", err)
	}
	if class.DriverName != c.cfg.Driver {
		return nil, fmt.Errorf("volume attributes class %s: %w: %s", name, errForeignClass, class.DriverName)
	}
	return class.Parameters, nil
}
