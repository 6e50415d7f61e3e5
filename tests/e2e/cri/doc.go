// SPDX-License-Identifier: Apache-2.0

// Package cri looks at a CRI socket as the kubelet and the upstream validation suite do: what is
// tested here has to hold for any runtime. NODEAGENT_E2E_RUNTIME=containerd runs it on containerd's own CRI
// plugin, which shows that a test asks for nothing odd, and NODEAGENT_E2E_HERE=1 on the nodeagent that systemd runs on
// this machine (make test-machine).
package cri
