// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/kubelet"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
	"github.com/nodeagent/nodeagent/tests/bench/network"
	"github.com/nodeagent/nodeagent/tests/bench/plugins"
	"github.com/nodeagent/nodeagent/tests/bench/runtimes"
	"github.com/nodeagent/nodeagent/tests/bench/services"
)

// headline is the table of the README: a few figures of each area beside the
// peer that people have.
func headline(results map[string]*figures.Area) string {
	rows := []struct {
		area, text, group, figure, peer, beside string
	}{
		{"cri", "a sandbox (RunPodSandbox)", runtimes.GroupVerbs, "RunPodSandbox", lab.Nodeagent, lab.Containerd},
		{"cri", "to a pod's first log line", runtimes.GroupVerbs, "to the first log line", lab.Nodeagent, lab.Containerd},
		{"cri", "CPU of a pod's whole life", runtimes.GroupVerbs, "CPU of a pod's whole life, whole machine", lab.Nodeagent, lab.Containerd},
		{"density", "110 pods' shims, PSS", runtimes.GroupMemory, "helper processes, PSS with 110 pods", lab.Nodeagent, lab.Containerd},
		{"kubelet", "50 pods at once under the kubelet, until Ready", kubelet.GroupReady, "50 at once, all Ready", lab.Nodeagent, lab.Containerd},
		{"cni", "CNI ADD", plugins.Group, "ADD", lab.Nodeagent, "bridge, host-local, portmap"},
		{"network", "TCP round trips from pod to pod", network.GroupSame, "TCP round trips", "pod to pod", "bridge and conntrack"},
		{"services", "connections through a NodePort with 5,000 services", services.GroupOutside, "TCP connections with 5000 services", lab.Nodeagent, "kube-proxy nftables"},
	}
	var b strings.Builder
	b.WriteString("| | nodeagent | its peer | |\n|---|---|---|---|\n")
	for _, row := range rows {
		f := results[row.area].Find(row.group, row.figure)
		if f == nil || f.Values[row.peer] == nil || f.Values[row.beside] == nil {
			continue
		}
		b.WriteString("| " + strings.Join([]string{
			row.text, figures.With(f.Values[row.peer].P50, f.Unit), figures.With(f.Values[row.beside].P50, f.Unit), row.beside,
		}, " | ") + " |\n")
	}
	if strings.Count(b.String(), "\n") == 2 {
		return "Not measured yet.\n"
	}
	return b.String()
}
