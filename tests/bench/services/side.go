// SPDX-License-Identifier: Apache-2.0

package services

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
	"github.com/nodeagent/nodeagent/tests/bench/plugins"
	"github.com/nodeagent/nodeagent/tests/bench/traffic"
)

// side is one implementation on one node.
type side struct {
	name string
	box  *lab.Box
	addr netip.Addr
	api  *apiServer
	// proxy is the daemon that programs services.
	proxy *lab.Proc
	// from drives traffic in a pod, pod is where it leads.
	from *traffic.Driver
	pod  netip.Addr
	// filled is how many filling services there are.
	filled int

	open []io.Closer
}

var cidr = netip.MustParsePrefix("10.1.1.0/24")

const (
	apiAddr    = "127.0.0.1:18080"
	kubeconfig = "/etc/kubernetes/bench.kubeconfig"
)

// newSide gives a node an API server of its own.
func newSide(ctx context.Context, name string, b *lab.Box, i int) (*side, error) {
	s := &side{name: name, box: b, addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + i)}), api: newAPIServer()}
	if err := s.api.add("nodes", nodeObject(b.Name, s.addr.String(), cidr.String())); err != nil {
		return nil, err
	}
	l, err := b.Listen(ctx, apiAddr)
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", b.Name, err)
	}
	server := &http.Server{Handler: s.api, ReadHeaderTimeout: time.Minute}
	go server.Serve(l) //nolint:errcheck // ends by Close, and the daemons tell of an end before
	s.open = append(s.open, server)
	return s, b.Write(kubeconfig, []byte(`apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "http://`+apiAddr+`"}}]
users: [{name: bench, user: {}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`))
}

func (s *side) close() error {
	var errs []error
	for _, c := range slices.Backward(s.open) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (s *side) agentConfig() map[string]any {
	return map[string]any{
		"network":    map[string]any{"podCIDRs": []string{cidr.String()}, "nodeAddrs": []string{s.addr.String()}},
		"kubernetes": map[string]any{"kubeconfig": kubeconfig},
	}
}

// start starts what programs services.
func (s *side) start(r *lab.Run) error {
	var err error
	if s.name == lab.Nodeagent {
		s.proxy, err = r.AgentStarted(s.box, s.agentConfig())
		return err
	}
	mode := "nftables"
	if s.name == ipt {
		mode = "iptables"
	}
	data, err := yaml.Marshal(map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"mode": mode, "clusterCIDR": cidr.String(), "hostnameOverride": s.box.Name,
		"clientConnection": map[string]any{"kubeconfig": kubeconfig, "contentType": mediaProtobuf},
		"conntrack": map[string]any{
			"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
		},
	})
	if err != nil {
		return fmt.Errorf("render configuration: %w", err)
	}
	const config = "/etc/kubernetes/kube-proxy.yaml"
	if err := s.box.Write(config, data); err != nil {
		return err
	}
	s.proxy, err = s.box.Daemon(filepath.Join(r.Dir, s.box.Name, "kube-proxy.log"), nil,
		filepath.Join(r.Tools, "kube-proxy"), "--config="+config)
	return err
}

// pods makes two pods, with a server in one and a driver in the other.
func (s *side) pods(ctx context.Context, r *lab.Run) error {
	var c *plugins.Caller
	var err error
	if s.name == lab.Nodeagent {
		wait, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		err := lab.Until(wait, 20*time.Millisecond, func() error {
			return errors.Join(s.proxy.Down(), s.box.Ready(wait))
		})
		if err != nil {
			return err
		}
		c, err = plugins.Agent(r, s.box)
		if err != nil {
			return err
		}
	} else if c, err = plugins.Bridge(r, s.box, cidr); err != nil {
		return err
	}
	s.open = append(s.open, c)
	server, _, err := c.Add("server")
	if err != nil {
		return err
	}
	client, _, err := c.Add("client")
	if err != nil {
		return err
	}
	return s.ends(client.NetNS, server.NetNS, server.Addr)
}

// ends starts a driver and a server; no name of a pod is the node itself.
func (s *side) ends(client, server string, at netip.Addr) error {
	s.pod = at
	for _, p := range []uint16{port, direct} {
		c, err := traffic.Serve(s.box, server, netip.AddrPortFrom(at, p))
		if err != nil {
			return err
		}
		s.open = append(s.open, c)
	}
	var err error
	if s.from, err = traffic.Drive(s.box, client); err != nil {
		return err
	}
	s.open = append(s.open, s.from)
	return nil
}

// fillTo adds services of one endpoint up to n, and waits until all are
// programmed.
func (s *side) fillTo(ctx context.Context, n int) error {
	if n <= s.filled {
		return nil
	}
	if err := s.api.put(s.box.Name, nil, fill(s.filled, n, 1, s.pod)...); err != nil {
		return err
	}
	first := s.filled
	s.filled = n
	return s.programmed(ctx, first, n)
}

// patience is how long programming may take.
const patience = 2 * time.Minute

// programmed waits until the sentinels among the services lead somewhere.
func (s *side) programmed(ctx context.Context, first, last int) error {
	for i := first; i < last; i++ {
		if !isSentinel(i, last) {
			continue
		}
		if err := errors.Join(ctx.Err(), s.proxy.Down()); err != nil {
			return err
		}
		if _, err := s.from.Measure(traffic.Reach, netip.AddrPortFrom(clusterIP(i), front), patience); err != nil {
			return errors.Join(err, s.proxy.Down())
		}
	}
	return nil
}
