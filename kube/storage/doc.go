// SPDX-License-Identifier: Apache-2.0

// Package storage does, for the volumes of this node, what a CSI driver's
// sidecars do: it owns the CSIDriver object, provisions and deletes volumes for
// claims, publishes capacity, grows and modifies volumes, and takes and deletes
// snapshots. Each agent works for its own node; nothing is elected.
//
// It speaks with the driver through CSI's own messages, so whatever the
// driver validates for the kubelet and for sanity tests it validates here.
// Every controller is a function from the newest state of one object to the
// next right step, may run twice, out of order and after a crash, and may be
// turned off where a cluster runs the upstream sidecar.
package storage
