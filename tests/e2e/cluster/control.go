// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const startDeadline = 90 * time.Second

func (c *Cluster) tool(name string) string { return filepath.Join(c.Tools, name) }

func (c *Cluster) logPath(box, name string) string {
	return filepath.Join(c.Logs(), box, name+".log")
}

// gates renders the feature gates as a flag, none as no flag.
func (c *Cluster) gates() []string {
	if len(c.FeatureGates) == 0 {
		return nil
	}
	var kv []string
	for _, k := range slices.Sorted(maps.Keys(c.FeatureGates)) {
		kv = append(kv, fmt.Sprintf("%s=%t", k, c.FeatureGates[k]))
	}
	return []string{"--feature-gates=" + strings.Join(kv, ",")}
}

// startEtcd starts the store; it needs no fsync, for nothing outlives the cluster.
func (c *Cluster) startEtcd(ctx context.Context) error {
	const client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	p, err := c.Control.Spawn(procSpec{Name: "etcd", Log: c.logPath("control", "etcd"), Argv: []string{
		c.tool("etcd"), "--data-dir=" + filepath.Join(c.dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer,
		"--log-level=warn",
	}})
	if err != nil {
		return err
	}
	c.server = append(c.server, p)
	return waitFor(deadline(ctx, c, startDeadline), func(ctx context.Context) error {
		conn, err := c.Control.Dial(ctx, "tcp", "127.0.0.1:2379")
		if err != nil {
			return err
		}
		return conn.Close()
	}, p)
}

func (c *Cluster) spawnAPIServer() (*Proc, error) {
	k := c.pki.path
	argv := slices.Concat([]string{
		c.tool("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + controlIP4,
		"--tls-cert-file=" + k("apiserver.crt"), "--tls-private-key-file=" + k("apiserver.key"),
		"--client-ca-file=" + k("ca.crt"),
		"--kubelet-client-certificate=" + k("apiserver-kubelet.crt"), "--kubelet-client-key=" + k("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + k("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + k("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + k("front-proxy.crt"), "--proxy-client-key-file=" + k("front-proxy.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + k("service-account.crt"), "--service-account-signing-key-file=" + k("service-account.key"),
		"--service-cluster-ip-range=" + serviceCIDRs, "--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--runtime-config=api/all=true", "--profiling=false",
	}, c.gates())
	p, err := c.Control.Spawn(procSpec{Name: "kube-apiserver", Log: c.logPath("control", "kube-apiserver"), Argv: argv})
	if err == nil {
		c.server = append(c.server, p)
	}
	return p, err
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	p, err := c.spawnAPIServer()
	if err != nil {
		return err
	}
	f, err := newForwarder(ctx, c.Control, "127.0.0.1:16443", controlIP4+":6443")
	if err != nil {
		return err
	}
	c.forward = f
	c.onDown(f.close)
	if c.Kubeconfig, err = c.pki.kubeconfig("admin", "https://"+f.addr(), "admin", "system:masters"); err != nil {
		return err
	}
	if c.Rest, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return err
	}
	c.Rest.QPS = -1 // no limit: a wait's last error shall be the server's
	if c.Client, err = kubernetes.NewForConfig(c.Rest); err != nil {
		return err
	}
	return c.apiServerReady(ctx, p)
}

func (c *Cluster) apiServerReady(ctx context.Context, p *Proc) error {
	return waitFor(deadline(ctx, c, startDeadline), func(ctx context.Context) error {
		return c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}, p)
}

// KillServer ends etcd and the API server without a warning; what they hold is kept.
func (c *Cluster) KillServer() error {
	var errs []error
	for _, p := range c.server {
		errs = append(errs, p.Signal(unix.SIGKILL))
		<-p.gone
	}
	c.server = nil
	return errors.Join(errs...)
}

// StartServer starts again what KillServer ended, and waits until it serves.
func (c *Cluster) StartServer(ctx context.Context) error {
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	p, err := c.spawnAPIServer()
	if err != nil {
		return err
	}
	return c.apiServerReady(ctx, p)
}

func (c *Cluster) startControllers(context.Context) error {
	k := c.pki.path
	kcm := k("kube-controller-manager.kubeconfig")
	sched := k("kube-scheduler.kubeconfig")
	_, err1 := c.Control.Spawn(procSpec{
		Name: "kube-controller-manager", Log: c.logPath("control", "kube-controller-manager"), Restart: true,
		Argv: slices.Concat([]string{
			c.tool("kube-controller-manager"),
			"--kubeconfig=" + kcm, "--authentication-kubeconfig=" + kcm, "--authorization-kubeconfig=" + kcm,
			"--bind-address=127.0.0.1", "--leader-elect=false", "--use-service-account-credentials=true",
			"--service-account-private-key-file=" + k("service-account.key"), "--root-ca-file=" + k("ca.crt"),
			"--cluster-signing-cert-file=" + k("ca.crt"), "--cluster-signing-key-file=" + k("ca.key"),
			"--allocate-node-cidrs=true", "--cluster-cidr=" + podCIDRs, "--service-cluster-ip-range=" + serviceCIDRs,
			"--controllers=*,bootstrap-signer-controller,token-cleaner-controller",
		}, c.gates()),
	})
	_, err2 := c.Control.Spawn(procSpec{
		Name: "kube-scheduler", Log: c.logPath("control", "kube-scheduler"), Restart: true,
		Argv: slices.Concat([]string{
			c.tool("kube-scheduler"),
			"--kubeconfig=" + sched, "--authentication-kubeconfig=" + sched, "--authorization-kubeconfig=" + sched,
			"--bind-address=127.0.0.1", "--leader-elect=false",
		}, c.gates()),
	})
	return errors.Join(err1, err2)
}

// deadline bounds a step of Up; the timer is released when the cluster is down.
func deadline(ctx context.Context, c *Cluster, d time.Duration) context.Context {
	out, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("gave up after %s", d))
	c.onDown(func(context.Context) error { cancel(); return nil })
	return out
}
