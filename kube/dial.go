// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// dialTimeout is for one address; a dead server must not hide a live one.
	dialTimeout = 5 * time.Second
	// dialKeepAlive finds out about a server whose machine is gone; HTTP/2
	// pings (client-go's default, 30 s) do the rest.
	dialKeepAlive = 30 * time.Second
)

// dialer opens connections to the API server. The name in the URL, and so
// what the certificate must show, stays; only the address changes: to the
// configured servers, or, for an agent inside the cluster, to the endpoints
// of the service "kubernetes" as soon as they are known. So the agent does not
// depend on a ClusterIP that it may itself be the one to translate.
type dialer struct {
	target string // the address that the URL stands for
	net    net.Dialer
	fixed  bool // configured servers are never replaced by learned ones
	learns bool // the URL is a ClusterIP

	mu    sync.Mutex
	addrs []string // guarded by mu; the one that worked last comes first
}

func newDialer(server string, cfg Config) (*dialer, error) {
	target, err := hostPort(server)
	if err != nil {
		return nil, err
	}
	return &dialer{
		target: target,
		net:    net.Dialer{Timeout: dialTimeout, KeepAlive: dialKeepAlive},
		fixed:  len(cfg.Servers) > 0,
		learns: cfg.InCluster && len(cfg.Servers) == 0,
		addrs:  slices.Clone(cfg.Servers),
	}, nil
}

// learn replaces the addresses by those of the service "kubernetes".
func (d *dialer) learn(addrs []string) {
	if !d.learns || len(addrs) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs = slices.Clone(addrs)
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if address != d.target { // a proxy, or an exec credential plugin's server
		return d.net.DialContext(ctx, network, address)
	}
	d.mu.Lock()
	addrs := slices.Clone(d.addrs)
	d.mu.Unlock()
	if !d.fixed {
		addrs = append(addrs, address)
	}
	var errs []error
	for _, a := range addrs {
		conn, err := d.net.DialContext(ctx, network, a)
		if err == nil {
			d.prefer(a)
			return conn, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("dial API server: %w", errors.Join(errs...))
}

// prefer moves an address that worked to the front.
func (d *dialer) prefer(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.addrs, addr); i > 0 {
		d.addrs = slices.Insert(slices.Delete(d.addrs, i, i+1), 0, addr)
	}
}

// sliceAddresses are the ready addresses of a slice with its port of that name.
func sliceAddresses(s *discoveryv1.EndpointSlice, port string) []string {
	var out []string
	for _, p := range s.Ports {
		if p.Port == nil || p.Name == nil || *p.Name != port {
			continue
		}
		for i := range s.Endpoints {
			ep := &s.Endpoints[i]
			if ep.Conditions.Ready != nil && !*ep.Conditions.Ready {
				continue
			}
			for _, a := range ep.Addresses {
				out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
			}
		}
	}
	return out
}
