// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// The kinds. An empty namespace is all namespaces.
type (
	// Nodes of the cluster.
	Nodes = Resource[*corev1.Node, *corev1.NodeList]
	// Services in a namespace.
	Services = Resource[*corev1.Service, *corev1.ServiceList]
	// Pods in a namespace.
	Pods = Resource[*corev1.Pod, *corev1.PodList]
	// Namespaces of the cluster.
	Namespaces = Resource[*corev1.Namespace, *corev1.NamespaceList]
	// Volumes are PersistentVolumes.
	Volumes = Resource[*corev1.PersistentVolume, *corev1.PersistentVolumeList]
	// Claims are PersistentVolumeClaims in a namespace.
	Claims = Resource[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList]
	// Events in a namespace.
	Events = Resource[*corev1.Event, *corev1.EventList]

	// EndpointSlices in a namespace.
	EndpointSlices = Resource[*discoveryv1.EndpointSlice, *discoveryv1.EndpointSliceList]
	// NetworkPolicies in a namespace.
	NetworkPolicies = Resource[*networkingv1.NetworkPolicy, *networkingv1.NetworkPolicyList]

	// StorageClasses of the cluster.
	StorageClasses = Resource[*storagev1.StorageClass, *storagev1.StorageClassList]
	// CSIDrivers of the cluster.
	CSIDrivers = Resource[*storagev1.CSIDriver, *storagev1.CSIDriverList]
	// Capacities are CSIStorageCapacities in a namespace.
	Capacities = Resource[*storagev1.CSIStorageCapacity, *storagev1.CSIStorageCapacityList]
	// VolumeAttributesClasses of the cluster.
	VolumeAttributesClasses = Resource[*storagev1.VolumeAttributesClass, *storagev1.VolumeAttributesClassList]

	// Snapshots are VolumeSnapshots in a namespace.
	Snapshots = Resource[*snapshotv1.VolumeSnapshot, *snapshotv1.VolumeSnapshotList]
	// SnapshotContents are VolumeSnapshotContents.
	SnapshotContents = Resource[*snapshotv1.VolumeSnapshotContent, *snapshotv1.VolumeSnapshotContentList]
	// SnapshotClasses are VolumeSnapshotClasses.
	SnapshotClasses = Resource[*snapshotv1.VolumeSnapshotClass, *snapshotv1.VolumeSnapshotClassList]

	// GroupContents are VolumeGroupSnapshotContents.
	GroupContents = Resource[*groupv1.VolumeGroupSnapshotContent, *groupv1.VolumeGroupSnapshotContentList]
	// GroupClasses are VolumeGroupSnapshotClasses.
	GroupClasses = Resource[*groupv1.VolumeGroupSnapshotClass, *groupv1.VolumeGroupSnapshotClassList]
)

// Nodes of the cluster.
func (c *Client) Nodes() Nodes { return Nodes{c.core, "nodes", ""} }

// Services in a namespace.
func (c *Client) Services(ns string) Services { return Services{c.core, "services", ns} }

// Pods in a namespace.
func (c *Client) Pods(ns string) Pods { return Pods{c.core, "pods", ns} }

// Namespaces of the cluster.
func (c *Client) Namespaces() Namespaces { return Namespaces{c.core, "namespaces", ""} }

// Volumes are PersistentVolumes.
func (c *Client) Volumes() Volumes { return Volumes{c.core, "persistentvolumes", ""} }

// Claims are PersistentVolumeClaims in a namespace.
func (c *Client) Claims(ns string) Claims { return Claims{c.core, "persistentvolumeclaims", ns} }

// Events in a namespace.
func (c *Client) Events(ns string) Events { return Events{c.core, "events", ns} }

// EndpointSlices in a namespace.
func (c *Client) EndpointSlices(ns string) EndpointSlices {
	return EndpointSlices{c.discovery, "endpointslices", ns}
}

// NetworkPolicies in a namespace.
func (c *Client) NetworkPolicies(ns string) NetworkPolicies {
	return NetworkPolicies{c.networking, "networkpolicies", ns}
}

// StorageClasses of the cluster.
func (c *Client) StorageClasses() StorageClasses {
	return StorageClasses{c.storage, "storageclasses", ""}
}

// CSIDrivers of the cluster.
func (c *Client) CSIDrivers() CSIDrivers { return CSIDrivers{c.storage, "csidrivers", ""} }

// Capacities are CSIStorageCapacities in a namespace.
func (c *Client) Capacities(ns string) Capacities {
	return Capacities{c.storage, "csistoragecapacities", ns}
}

// VolumeAttributesClasses of the cluster.
func (c *Client) VolumeAttributesClasses() VolumeAttributesClasses {
	return VolumeAttributesClasses{c.storage, "volumeattributesclasses", ""}
}

// Snapshots are VolumeSnapshots in a namespace.
func (c *Client) Snapshots(ns string) Snapshots { return Snapshots{c.snapshot, "volumesnapshots", ns} }

// SnapshotContents are VolumeSnapshotContents.
func (c *Client) SnapshotContents() SnapshotContents {
	return SnapshotContents{c.snapshot, "volumesnapshotcontents", ""}
}

// SnapshotClasses are VolumeSnapshotClasses.
func (c *Client) SnapshotClasses() SnapshotClasses {
	return SnapshotClasses{c.snapshot, "volumesnapshotclasses", ""}
}

// GroupContents are VolumeGroupSnapshotContents.
func (c *Client) GroupContents() GroupContents {
	return GroupContents{c.group, "volumegroupsnapshotcontents", ""}
}

// GroupClasses are VolumeGroupSnapshotClasses.
func (c *Client) GroupClasses() GroupClasses {
	return GroupClasses{c.group, "volumegroupsnapshotclasses", ""}
}
