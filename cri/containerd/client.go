// SPDX-License-Identifier: Apache-2.0

// Package containerd is the only door to containerd: the rest of the CRI
// speaks of images, snapshots and tasks through the methods of this package.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/client"
)

// Namespace is containerd's namespace of all objects that nodeagent makes; the
// kubelet's cAdvisor looks for containers only there.
const Namespace = "k8s.io"

// Config says how to reach containerd.
type Config struct {
	// Address is the path of containerd's socket.
	Address string `yaml:"address"`
	// DialTimeout bounds one attempt to connect.
	DialTimeout time.Duration `yaml:"dialTimeout"`
	// Snapshotter names the snapshotter for containers' root file systems.
	Snapshotter string `yaml:"snapshotter"`
}

// Default returns the configuration of a stock containerd. The socket is the
// one that the kubelet's cAdvisor is compiled to use.
func Default() Config {
	return Config{
		Address:     "/run/containerd/containerd.sock",
		DialTimeout: 10 * time.Second,
		Snapshotter: "overlayfs",
	}
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	if c.Address == "" {
		errs = append(errs, errors.New("address: must not be empty"))
	}
	if c.DialTimeout <= 0 {
		errs = append(errs, fmt.Errorf("dialTimeout: %s is not positive", c.DialTimeout))
	}
	if c.Snapshotter == "" {
		errs = append(errs, errors.New("snapshotter: must not be empty"))
	}
	return errors.Join(errs...)
}

// Client is a connection to one containerd. It survives containerd's restart.
type Client struct {
	cfg Config
	c   *client.Client
}

// New makes an unconnected client.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg}, nil
}

// Start connects; it fails when the socket does not answer within DialTimeout.
func (c *Client) Start(_ context.Context) error {
	cc, err := client.New(c.cfg.Address,
		client.WithDefaultNamespace(Namespace), client.WithTimeout(c.cfg.DialTimeout))
	if err != nil {
		return fmt.Errorf("connect to containerd at %s: %w", c.cfg.Address, err)
	}
	c.c = cc
	return nil
}

// Stop closes the connection; containerd and all it runs go on.
func (c *Client) Stop(_ context.Context) error {
	if c.c == nil {
		return nil
	}
	return c.c.Close()
}
