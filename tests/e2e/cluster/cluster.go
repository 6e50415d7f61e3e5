// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster as plain processes on one
// machine: etcd, the control plane, and nodes whose kubelet drives nodeagent or,
// as the peer to compare with, containerd's own CRI plugin.
//
// Every node, and the control plane, is a Box: namespaces (network, mount, pid,
// uts, ipc) with a small init. Nothing of the machine's network is touched: the
// boxes meet on a bridge that lives in the control plane's namespace, and the API
// server is reached from the machine through a forwarder on loopback.
//
// A Cluster promises to leave nothing: Down ends the boxes and with them their
// processes, mounts, links and pins, then removes cgroups, loop devices, files and puts
// back the sysctls that the kubelet writes. What ends the process that owns
// a Cluster ends the boxes too; Sweep removes what is left then.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Runtimes that a cluster's kubelets can be given.
const (
	RuntimeNodeagent  = "nodeagent"
	RuntimeContainerd = "containerd"
)

// RuntimeBoth gives the nodes nodeagent and containerd by turns, to compare them
// under one control plane.
const RuntimeBoth = "both"

// Config says what cluster to run.
type Config struct {
	// Name tells clusters on one machine apart; it names directories and cgroups.
	Name string
	// Nodes is how many nodes there are, 1 to 9.
	Nodes int
	// Runtime is RuntimeNodeagent, RuntimeContainerd or RuntimeBoth.
	Runtime string
	// Base is the directory for everything the cluster keeps on disk.
	Base string
	// Tools holds the programs that `make deps` builds.
	Tools string
	// Bin holds the programs that this repository builds.
	Bin string
	// Dist is a directory that `make package` filled. Then nodes on containerd get
	// their network, services and volumes from its DaemonSet in mode pod, instead
	// of from bridge and kube-proxy.
	Dist string
	// KubeletExtra is merged into the kubelet's configuration.
	KubeletExtra map[string]any
	// AgentExtra is merged into nodeagent's configuration.
	AgentExtra map[string]any
	// OCI is an OCI runtime that Runtimes offers beside runc, as the handler
	// "other"; empty: none.
	OCI string
	// PullImages makes Runtimes serve the images whose pull is measured.
	PullImages bool
	// Conformance adds the stand-ins of the images that Kubernetes' own tests ask for.
	Conformance bool
	// ServiceOptions are those of the agent's data path.
	ServiceOptions map[string]string
	// FeatureGates are set on every Kubernetes component.
	FeatureGates map[string]bool
	// Progress receives what happens; nil means that nobody watches.
	Progress *Progress
}

// Default is a one-node cluster on nodeagent.
func Default() Config {
	cache := os.Getenv("NODEAGENT_CACHE")
	if cache == "" {
		cache = "/var/cache/nodeagent"
	}
	return Config{
		Name:    "run",
		Nodes:   1,
		Runtime: RuntimeNodeagent,
		Base:    "/var/tmp/nodeagent-cluster",
		Tools:   filepath.Join(cache, "bin"),
		Bin:     "bin",
	}
}

// Validate reports everything that is wrong with a configuration.
func (c *Config) Validate() error {
	var errs []error
	if !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`).MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("name: %q is not a DNS label of at most 32 characters", c.Name))
	}
	if c.Nodes < 1 || c.Nodes > 9 {
		errs = append(errs, fmt.Errorf("nodes: %d is not between 1 and 9", c.Nodes))
	}
	if !slices.Contains([]string{RuntimeNodeagent, RuntimeContainerd, RuntimeBoth}, c.Runtime) {
		errs = append(errs, fmt.Errorf("runtime: %q is none of %s, %s and %s", c.Runtime, RuntimeNodeagent, RuntimeContainerd, RuntimeBoth))
	}
	for name, dir := range map[string]*string{"base": &c.Base, "tools": &c.Tools, "bin": &c.Bin} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
		*dir = abs
	}
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("a cluster needs root: it makes namespaces and mounts"))
	}
	return errors.Join(errs...)
}

// programs names what must be there before anything is started.
func (c *Config) programs() []string {
	p := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "coredns", "containerd", "containerd-shim-runc-v2", "runc"}
	if c.Runtime != RuntimeNodeagent {
		p = append(p, "kube-proxy", "bridge", "host-local", "portmap", "loopback", "pause")
	}
	for i := range p {
		p[i] = filepath.Join(c.Tools, p[i])
	}
	if c.Runtime != RuntimeContainerd {
		p = append(p, filepath.Join(c.Bin, "nodeagent"))
	}
	if c.hasAgent() {
		p = append(p, filepath.Join(c.Tools, "snapshot-controller"), filepath.Join(c.Bin, "storage.yaml"))
	}
	return p
}

func (c *Config) checkPrograms() error {
	var errs []error
	for _, p := range c.programs() {
		if _, err := os.Stat(p); err != nil {
			errs = append(errs, fmt.Errorf("%w (run `make deps` for %s, `make build` for %s)", err, c.Tools, c.Bin))
		}
	}
	return errors.Join(errs...)
}

// Cluster is a running cluster. Its methods may be called by several goroutines.
type Cluster struct {
	Config
	// Nodes are the machines, in order.
	Nodes []*Node
	// Control is where etcd and the control plane run and where the switch is.
	Control *Box
	// Kubeconfig is the administrator's, for use from the machine.
	Kubeconfig string
	// Client is the administrator's client.
	Client kubernetes.Interface
	// Rest is the configuration behind Client.
	Rest *rest.Config

	dir      string
	state    *state
	pki      *pki
	server   []*Proc // etcd and the API server
	forward  *forwarder
	registry *http.Server
	undo     []func(context.Context) error
	// bare: no control plane and no kubelet, see Runtimes.
	bare bool
	// alone: each node sees its cgroup as the root of all, see NodeTests.
	alone bool
}

// Up starts a cluster and returns when every node is Ready and names are answered. On an error nothing
// is left running, and the error names the log to look at.
func Up(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.checkPrograms(); err != nil {
		return nil, err
	}
	c := &Cluster{Config: cfg, dir: filepath.Join(cfg.Base, cfg.Name)}
	steps := []step{
		{"certificates", c.makePKI},
		{"network switch", c.startControlBox},
		{"image registry", c.startRegistry},
		{"etcd", c.startEtcd},
		{"API server", c.startAPIServer},
		{"controller manager and scheduler", c.startControllers},
		{"nodes", c.startNodes},
	}
	if c.Dist != "" {
		steps = append(steps, step{"DaemonSet", c.applyDaemonSet})
	}
	steps = append(steps, step{"apply cluster DNS", c.applyDNS}, step{"nodes Ready", c.waitReady})
	if c.hasAgent() {
		steps = append(steps, step{"snapshot API", c.startSnapshots}, step{"storage class", c.applyStorage})
	}
	steps = append(steps, step{"cluster DNS", c.waitDNS})
	return c.up(ctx, steps)
}

// step is one thing on the way up.
type step struct {
	name string
	do   func(context.Context) error
}

// up claims the cluster's directory and goes the steps; a failure ends what was started.
func (c *Cluster) up(ctx context.Context, steps []step) (_ *Cluster, retErr error) {
	if err := c.claim(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), downDeadline)
			defer cancel()
			retErr = errors.Join(retErr, c.keepLogs(), c.Down(cleanup))
		}
	}()
	for _, s := range steps {
		if err := c.Progress.Step(s.name, func() error { return s.do(ctx) }); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return c, nil
}

// Node returns the node with that name, or nil.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Dir is where the cluster keeps its files; Logs the part with the logs.
func (c *Cluster) Dir() string { return c.dir }

// Logs is the directory with every process's log.
func (c *Cluster) Logs() string { return filepath.Join(c.dir, "logs") }

func (c *Cluster) onDown(f func(context.Context) error) { c.undo = append(c.undo, f) }

// Down ends the cluster. It goes on past errors and returns them all.
func (c *Cluster) Down(ctx context.Context) error {
	var errs []error
	for _, undo := range slices.Backward(c.undo) {
		errs = append(errs, undo(ctx))
	}
	c.undo = nil
	errs = append(errs, Sweep(ctx, c.dir))
	return errors.Join(errs...)
}
