// SPDX-License-Identifier: Apache-2.0

// Package install brings nodeagent onto a node and takes it off again: the
// programs, the configuration, the identity for the API server, the systemd unit
// and the kubelet drop-ins. It runs on the node itself, or in the DaemonSet's
// pod, whose view of the node is a directory.
//
// Applying twice changes nothing the second time; an interrupted one is finished
// by the next. What was installed is recorded with its hash, so that removal
// takes only that, and keeps what a person has changed.
package install
