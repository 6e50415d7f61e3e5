// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Sockets as a node knows them.
const (
	agentCRISocket      = "/run/nodeagent/cri.sock"
	containerdSocket    = "/run/containerd/containerd.sock"
	containerdConfigDir = "/etc/containerd/certs.d"
	agentConfig         = "/etc/nodeagent/config.yaml"
)

// PauseImage is what containerd's CRI plugin makes sandboxes from.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// CRISocket is the socket that the node's kubelet talks to.
func (n *Node) CRISocket() string {
	if n.kind == RuntimeContainerd {
		return containerdSocket
	}
	return agentCRISocket
}

// DialUnix connects to a unix socket of the node.
func (n *Node) DialUnix(ctx context.Context, path string) (conn net.Conn, err error) {
	err = n.InMount(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path)
		return err
	})
	return conn, err
}

// env lets node programs find the tools of the cache first.
func (n *Node) env() []string {
	return []string{"PATH=" + n.c.Bin + ":" + n.c.Tools + ":" + os.Getenv("PATH")}
}

// daemon is a command as the node starts it.
func (n *Node) daemon(argv ...string) []string {
	if n.c.alone {
		return inSystemCgroup(argv)
	}
	return argv
}

func (n *Node) startRuntime(ctx context.Context) error {
	start := n.startAgent
	if n.kind == RuntimeContainerd {
		start = n.startContainerd
	}
	if err := start(); err != nil {
		return err
	}
	return n.socketUp(ctx, n.CRISocket(), n.Runtime)
}

func (n *Node) startAgent() error {
	level := "debug"
	if n.c.Runtime == RuntimeBoth {
		level = "info" // who compares does not want to measure the log
	}
	dataplane := map[string]any{"cgroup": n.UnifiedCgroup(), "serviceOptions": n.c.ServiceOptions}
	cfg := map[string]any{
		"apiVersion": "nodeagent.dev/v1alpha1", "kind": "NodeAgentConfiguration",
		"node":       map[string]any{"name": n.Name},
		"log":        map[string]any{"level": level},
		"containerd": map[string]any{"managed": true},
		"dataplane":  dataplane,
		"kubernetes": map[string]any{"kubeconfig": "/etc/nodeagent/kubeconfig"},
	}
	if !n.c.bare {
		cfg["storage"] = n.pools()
	}
	if n.c.alone {
		dataplane["cgroup"] = unifiedRoot()
	}
	maps.Copy(cfg, n.c.AgentExtra)
	if err := n.writeYAML(agentConfig, cfg); err != nil {
		return err
	}
	kubeconfig, err := os.ReadFile(n.c.pki.path("nodeagent.kubeconfig"))
	if err != nil {
		return err
	}
	if err := n.WriteFile("/etc/nodeagent/kubeconfig", kubeconfig); err != nil {
		return err
	}
	n.Runtime, err = n.Spawn(procSpec{
		Name: "nodeagent", Log: n.c.logPath(n.Name, "nodeagent"), Restart: true, Env: n.env(),
		Argv: n.daemon(filepath.Join(n.c.Bin, "nodeagent"), "run", "--config", agentConfig),
	})
	return err
}

// containerdConfig is what a distribution would configure for a kubelet on cgroupfs.
const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "` + PauseImage + `"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "` + containerdConfigDir + `"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["TOOLS", "/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd]
  default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "TOOLS/runc"
  SystemdCgroup = false
`

// otherRuntime takes the handler's name twice, and the OCI runtime.
const otherRuntime = `[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%s]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%s.options]
  BinaryName = %q
`

func (n *Node) startContainerd() error {
	cfg := strings.ReplaceAll(containerdConfig, "TOOLS", n.c.Tools)
	if n.c.OCI != "" {
		cfg += fmt.Sprintf(otherRuntime, otherHandler, otherHandler, n.c.OCI)
	}
	if err := n.WriteFile("/etc/containerd/config.toml", []byte(cfg)); err != nil {
		return err
	}
	var err error
	if n.Runtime, err = n.Spawn(procSpec{
		Name: "containerd", Log: n.c.logPath(n.Name, "containerd"), Restart: true, Env: n.env(),
		Argv: n.daemon(n.c.tool("containerd"), "--config=/etc/containerd/config.toml"),
	}); err != nil {
		return err
	}
	if n.c.bare || n.c.Dist != "" {
		return nil
	}
	return n.startKubeProxy()
}

// startKubeProxy starts what nodeagent does by itself. The conntrack sizes are the
// machine's and stay as they are.
func (n *Node) startKubeProxy() error {
	zero := "0s"
	cfg := map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": "nftables", "clusterCIDR": podCIDRs, "hostnameOverride": n.Name,
		"clientConnection": map[string]any{"kubeconfig": n.c.pki.path("kube-proxy.kubeconfig")},
		"conntrack": map[string]any{
			"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": zero, "tcpCloseWaitTimeout": zero,
		},
		"featureGates": n.c.FeatureGates,
	}
	if err := n.writeYAML("/etc/kubernetes/kube-proxy.yaml", cfg); err != nil {
		return err
	}
	_, err := n.Spawn(procSpec{
		Name: "kube-proxy", Log: n.c.logPath(n.Name, "kube-proxy"), Restart: true, Env: n.env(),
		Argv: []string{n.c.tool("kube-proxy"), "--config=/etc/kubernetes/kube-proxy.yaml"},
	})
	return err
}

// finishRuntime does what has to wait for the node's pod ranges: containerd gets a
// bridge network; nodeagent reads the ranges itself.
func (n *Node) finishRuntime(cidrs []string) error {
	if n.kind != RuntimeContainerd || n.c.Dist != "" {
		return nil
	}
	const path = "/etc/cni/net.d/10-bridge.conflist"
	if _, err := n.ReadFile(path); err == nil {
		return nil
	}
	var ranges, routes []any
	for _, cidr := range cidrs {
		ranges = append(ranges, []any{map[string]any{"subnet": cidr}})
	}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		routes = append(routes, map[string]any{"dst": dst})
	}
	data, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.1.0", "name": "bridge",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
				"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": "/run/cni-ipam"},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("render CNI configuration: %w", err)
	}
	return n.WriteFile(path, data)
}
