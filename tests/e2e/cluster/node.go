// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Node is a machine of the cluster: a box with directories of its own where
// node programs keep their things, a kubelet and a container runtime.
type Node struct {
	*Box
	IP4, IP6 string
	// Kubelet and Runtime are the node's programs; Runtime is nodeagent or containerd.
	Kubelet, Runtime *Proc

	// kind is RuntimeNodeagent or RuntimeContainerd.
	kind string

	c   *Cluster
	dir string
}

func (c *Cluster) startNodes(ctx context.Context) error {
	for i := range c.Config.Nodes {
		n, err := c.startBox(ctx, i+1, c.kindOf(i))
		if err != nil {
			return err
		}
		if err := n.join(ctx); err != nil {
			return err
		}
	}
	return c.saveState()
}

// kindOf is the runtime of the i-th node, from 0.
func (c *Cluster) kindOf(i int) string {
	if c.Runtime != RuntimeBoth {
		return c.Runtime
	}
	return []string{RuntimeNodeagent, RuntimeContainerd}[i%2]
}

// startBox makes the i-th node, 1 to 9, in which nothing runs yet.
func (c *Cluster) startBox(ctx context.Context, i int, kind string) (*Node, error) {
	n := &Node{c: c, kind: kind, IP4: fmt.Sprintf("10.99.0.%d", 10+i), IP6: fmt.Sprintf("fd99::%d", 10+i)}
	name := fmt.Sprintf("node%d", i)
	n.dir = filepath.Join(c.dir, name)
	spec, err := n.layout(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(c.Logs(), name), 0o700); err != nil {
		return nil, err
	}
	if c.alone {
		if spec.Cgroup, err = n.ownCgroup(name); err != nil {
			return nil, err
		}
	}
	if n.Box, err = newBox(ctx, name, spec, c.logPath(name, "init")); err != nil {
		return nil, err
	}
	c.onDown(n.Close)
	c.Nodes = append(c.Nodes, n)
	if err := n.makeCgroups(); err != nil {
		return nil, err
	}
	return n, c.plug(ctx, n.Box, n.IP4, n.IP6)
}

// join starts the node's runtime and kubelet.
func (n *Node) join(ctx context.Context) error {
	pki, name := n.c.pki, n.Name
	if err := pki.issue("kubelet-"+name, "system:node:"+name, []string{"system:nodes"}, []string{name, n.IP4, n.IP6}); err != nil {
		return err
	}
	if _, err := pki.kubeconfig("node-"+name, controlURL, "system:node:"+name, "system:nodes"); err != nil {
		return err
	}
	if n.kind == RuntimeNodeagent {
		if err := n.makePools(ctx); err != nil {
			return err
		}
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	return n.startKubelet()
}

// layout makes the node's directories and says how they are mounted. /etc and /opt
// are the machine's with a layer of the node's own on top.
func (n *Node) layout(name string) (boxSpec, error) {
	spec := boxSpec{Hostname: name, Sysfs: true}
	spec.Mounts = append(spec.Mounts, mountSpec{Type: "tmpfs", Target: "/run"})
	for _, d := range []string{"/etc", "/opt"} {
		spec.Mounts = append(spec.Mounts, mountSpec{Type: "overlay", Source: n.path("layer" + d), Target: d})
	}
	for _, d := range []string{"/var/lib", "/var/log"} {
		if err := os.MkdirAll(n.path(d), 0o755); err != nil {
			return spec, err
		}
		spec.Mounts = append(spec.Mounts, mountSpec{Type: "bind", Source: n.path(d), Target: d})
	}
	etc := map[string]string{
		// Nothing answers there, and says so at once: lookups must fail fast.
		"resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
		"hosts":       fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n%s %s\n", n.IP4, name, n.IP6, name),
		"hostname":    name + "\n",
		"machine-id":  strings.Repeat("0", 31) + name[len(name)-1:] + "\n",
		"containerd/certs.d/_default/hosts.toml": fmt.Sprintf(
			"[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", RegistryURL()),
	}
	for file, text := range etc {
		if err := n.write(filepath.Join("layer/etc/upper", file), text); err != nil {
			return spec, err
		}
	}
	return spec, nil
}

// path is where the node's directories are on the machine.
func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// write makes a file before the node is started; WriteFile does it afterwards.
func (n *Node) write(name, text string) error {
	return writeFile(n.path(name), []byte(text))
}

func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// WriteFile writes a file of the node with its directories.
func (n *Node) WriteFile(path string, data []byte) error {
	return n.InMount(func() error { return writeFile(path, data) })
}

// ReadFile reads a file of the node.
func (n *Node) ReadFile(path string) (data []byte, err error) {
	err = n.InMount(func() error {
		data, err = os.ReadFile(path)
		return err
	})
	return data, err
}

func (n *Node) writeYAML(path string, v any) error {
	data, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return n.WriteFile(path, data)
}

// socketUp waits until a unix socket of the node accepts a connection.
func (n *Node) socketUp(ctx context.Context, path string, p *Proc) error {
	return waitFor(deadline(ctx, n.c, startDeadline), func(ctx context.Context) error {
		conn, err := n.DialUnix(ctx, path)
		if err != nil {
			return err
		}
		return conn.Close()
	}, p)
}

func (n *Node) startKubelet() error {
	k := n.c.pki.path
	cfg := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": k("ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   k("kubelet-" + n.Name + ".crt"), "tlsPrivateKeyFile": k("kubelet-" + n.Name + ".key"),
		"containerRuntimeEndpoint": "unix://" + n.CRISocket(),
		"clusterDNS":               []string{clusterDNS}, "clusterDomain": clusterDomain, "resolvConf": "/etc/resolv.conf",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/" + n.CgroupRoot() + "/pods",
		"failSwapOn": false, "oomScoreAdj": 0, "maxOpenFiles": 20000, "maxPods": 250,
		"serializeImagePulls": false, "maxParallelImagePulls": 5, "registryPullQPS": 0, "eventRecordQPS": 0,
		"kubeAPIQPS": 100, "kubeAPIBurst": 200, "runtimeRequestTimeout": "2m0s",
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"evictionHard": map[string]string{
			"memory.available": "50Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%",
			"imagefs.available": "1%", "imagefs.inodesFree": "1%",
		},
		"featureGates": n.c.FeatureGates,
	}
	maps.Copy(cfg, n.c.KubeletExtra)
	if err := n.writeYAML("/etc/kubernetes/kubelet.yaml", cfg); err != nil {
		return err
	}
	var err error
	n.Kubelet, err = n.Spawn(procSpec{Name: "kubelet", Log: n.c.logPath(n.Name, "kubelet"), Restart: true, Argv: []string{
		n.c.tool("kubelet"), "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=" + k("node-"+n.Name+".kubeconfig"),
		"--hostname-override=" + n.Name, "--node-ip=" + n.IP4 + "," + n.IP6, "--root-dir=/var/lib/kubelet", "--v=2",
	}})
	return err
}

// Object is the node as the API server knows it.
func (n *Node) Object(ctx context.Context) (*corev1.Node, error) {
	return n.c.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
}

// waitReady waits until every node is Ready, has its pod ranges, and the control
// plane has routes to them, as a cloud's route controller would make.
func (c *Cluster) waitReady(ctx context.Context) error {
	ctx = deadline(ctx, c, 2*time.Minute)
	for _, n := range c.Nodes {
		procs := []*Proc{n.Kubelet, n.Runtime}
		if err := waitFor(ctx, n.ready, procs...); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		obj, err := n.Object(ctx)
		if err != nil {
			return err
		}
		if err := c.routePods(ctx, n, obj.Spec.PodCIDRs); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) ready(ctx context.Context) error {
	obj, err := n.Object(ctx)
	if err != nil {
		return err
	}
	if len(obj.Spec.PodCIDRs) < 2 {
		return errors.New("no pod ranges yet")
	}
	if err := n.finishRuntime(obj.Spec.PodCIDRs); err != nil {
		return err
	}
	i := slices.IndexFunc(obj.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 || obj.Status.Conditions[i].Status != corev1.ConditionTrue {
		msg := "no status yet"
		if i >= 0 {
			msg = obj.Status.Conditions[i].Message
		}
		return fmt.Errorf("not Ready: %s", msg)
	}
	return nil
}

// routePods gives the control plane, and on containerd's bridge the other nodes, routes to a node's pods.
func (c *Cluster) routePods(ctx context.Context, to *Node, cidrs []string) error {
	boxes := []*Box{c.Control}
	if c.Runtime == RuntimeContainerd {
		for _, n := range c.Nodes {
			if n != to {
				boxes = append(boxes, n.Box)
			}
		}
	}
	for _, b := range boxes {
		var batch []string
		for _, cidr := range cidrs {
			via := to.IP4
			if strings.Contains(cidr, ":") {
				via = to.IP6
			}
			batch = append(batch, fmt.Sprintf("route replace %s via %s", cidr, via))
		}
		if err := b.ip(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}
