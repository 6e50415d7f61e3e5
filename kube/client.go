// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"net"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/kube/apiclient"
)

// Client is the agent's one connection to the API server; all rooms that
// speak with it share the connection, the credentials and the rate limit.
type Client struct {
	*apiclient.Client

	cfg  *rest.Config
	dial *dialer
}

// Connect reads the credentials that cfg names and makes the client. It does
// not speak with the server, which may be away. It returns nil when cfg has
// no API server.
func Connect(cfg Config, version string) (*Client, error) {
	if !cfg.HasAPIServer() {
		return nil, nil //nolint:nilnil // no API server is a configuration, not a fault
	}
	rc, err := restConfig(cfg)
	if err != nil {
		return nil, err
	}
	d, err := newDialer(rc.Host, cfg)
	if err != nil {
		return nil, err
	}
	rc.Dial = d.dial
	rc.QPS, rc.Burst = cfg.QPS, cfg.Burst
	rc.UserAgent = "nodeagent/" + version
	c, err := apiclient.New(rc)
	if err != nil {
		return nil, err
	}
	return &Client{Client: c, cfg: rc, dial: d}, nil
}

// Server is the URL of the API server, for people.
func (c *Client) Server() string { return c.cfg.Host }

func restConfig(cfg Config) (*rest.Config, error) {
	if cfg.InCluster {
		rc, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("inCluster: %w", err)
		}
		return rc, nil
	}
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	return rc, nil
}

// hostPort is the address that an API server's URL stands for.
func hostPort(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", fmt.Errorf("server %q: %w", server, err)
	}
	if u.Hostname() == "" { // rest.Config.Host may be a bare host:port
		return server, nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80"}[u.Scheme]
	}
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
