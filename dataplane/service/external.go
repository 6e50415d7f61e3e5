// SPDX-License-Identifier: Apache-2.0

package service

import corev1 "k8s.io/api/core/v1"

// ExternalMode is the annotation of a Service that says how flows from outside
// reach backends of other nodes: one of the modes below. Nodes that do not
// know direct return (Node.External) do not heed it.
const ExternalMode = "nodeagent.dev/external-mode"

// The modes of flows from outside.
const (
	// ModeSNAT: the node asks in its own name, the answer comes back through it.
	ModeSNAT = "snat"
	// ModeDSR: the backend's node answers the client itself.
	ModeDSR = "dsr"
	// ModeHybrid is ModeDSR for TCP and ModeSNAT for the rest: a datagram may
	// be as large as the client's link, and then does not fit in the overlay.
	ModeHybrid = "hybrid"
)

// direct says whether backends of other nodes answer clients of a protocol
// themselves. An annotation that says nothing known is a fault of the service,
// which then goes as the node does.
func (c *compiler) direct(proto uint8) bool {
	if c.node.External == "" {
		return false
	}
	mode := c.node.External
	if asked, ok := c.object.Service.Annotations[ExternalMode]; ok {
		switch asked {
		case ModeSNAT, ModeDSR, ModeHybrid:
			mode = asked
		default:
			c.fault("annotation %s: %q is not one of snat, dsr, hybrid", ExternalMode, asked)
		}
	}
	if c.object.Service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		return false
	}
	return mode == ModeDSR || mode == ModeHybrid && proto == TCP
}
