// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"fmt"
	"path/filepath"

	"github.com/nodeagent/nodeagent/tests/bench/plugins"
)

// manifests is where a node's agent reads what an API server would tell.
const manifests = "/etc/nodeagent/manifests"

func nodeManifest(name string, i int, mode string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Node
metadata:
  name: %s
  annotations: {nodeagent.dev/peer-mode: %s}
spec:
  podCIDR: %s
  podCIDRs: [%s]
status:
  addresses: [{type: InternalIP, address: %s}]
`, name, mode, cidrs[i], cidrs[i], hosts[i])
}

// policies isolate the pods in both directions and allow what is measured.
const policies = `apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: bench, namespace: default}
spec:
  podSelector: {matchLabels: {app: bench}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: bench}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: bench}}}]}]
`

// isolate tells each pod's node of all pods and of the policies, which do not
// allow the stranger.
func isolate(stranger plugins.Pod, pods ...plugins.Pod) error {
	var b bytes.Buffer
	b.WriteString(policies)
	for i, p := range append([]plugins.Pod{stranger}, pods...) {
		app := "bench"
		if i == 0 {
			app = "stranger"
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
spec:
  nodeName: %s
  containers: [{name: main, image: none}]
status:
  phase: Running
  podIP: %s
  podIPs: [{ip: %s}]
`, filepath.Base(p.NetNS), app, p.Box.Name, p.Addr, p.Addr)
	}
	for _, p := range pods {
		if err := p.Box.Write(manifests+"/pods.yaml", b.Bytes()); err != nil {
			return fmt.Errorf("write manifests: %w", err)
		}
	}
	return nil
}
