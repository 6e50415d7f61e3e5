// SPDX-License-Identifier: Apache-2.0

package storage

// Names that Kubernetes and its CSI sidecars use, so that objects made here
// are those that they would have made.
const (
	annProvisioner     = "volume.kubernetes.io/storage-provisioner"
	annBetaProvisioner = "volume.beta.kubernetes.io/storage-provisioner"
	annSelectedNode    = "volume.kubernetes.io/selected-node"
	annProvisionedBy   = "pv.kubernetes.io/provisioned-by"

	finalizerVolume = "external-provisioner.volume.kubernetes.io/finalizer"

	prefixParameter = "csi.storage.k8s.io/"
	paramFSType     = prefixParameter + "fstype"
	paramPVCName    = prefixParameter + "pvc/name"
	paramPVCSpace   = prefixParameter + "pvc/namespace"
	paramPVName     = prefixParameter + "pv/name"

	attrIdentity = "storage.kubernetes.io/csiProvisionerIdentity"

	labelDriver    = prefixParameter + "drivername"
	labelManagedBy = prefixParameter + "managed-by"

	// AnnotationNodeUID on a PersistentVolume is the UID of the Node object on
	// whose machine the volume was made: a node that was replaced by another of
	// the same name does not have it.
	AnnotationNodeUID = "nodeagent.dev/node-uid"
)
