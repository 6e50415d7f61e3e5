// SPDX-License-Identifier: Apache-2.0

// Package e2e looks at nodeagent from the outside: a real kubelet and a real
// control plane on a cluster of its own, through public interfaces only.
package e2e
