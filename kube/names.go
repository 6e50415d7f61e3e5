// SPDX-License-Identifier: Apache-2.0

package kube

// Names that objects carry for this agent, and names of Kubernetes' own that
// no importable package has.
const (
	// LabelServiceProxyName marks Services and EndpointSlices that another
	// implementation serves (KEP-2447).
	LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	// LabelZone is the node label with the node's zone.
	LabelZone = "topology.kubernetes.io/zone"
	// AnnotationPeerMode on a Node says how that node's pods are reached:
	// "native", "vxlan" or "auto".
	AnnotationPeerMode = "nodeagent.dev/peer-mode"
	// AnnotationDSR on a Node says, with "true", that the node takes flows from
	// outside that others lead to it, and answers them itself. The agent writes it.
	AnnotationDSR = "nodeagent.dev/dsr"
)
