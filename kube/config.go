// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Config says where Kubernetes objects come from. With none of Kubeconfig,
// InCluster and Manifests set there is no source, and the room stays empty.
type Config struct {
	// NodeName is the name of this node's Node object.
	NodeName string `yaml:"nodeName"`
	// Kubeconfig is the path of a kubeconfig file.
	Kubeconfig string `yaml:"kubeconfig"`
	// InCluster takes the service account of the pod that the agent runs in.
	InCluster bool `yaml:"inCluster"`
	// Servers are addresses ("host:port") that are dialled, in order, instead
	// of the server's of the kubeconfig; its name is still what the certificate
	// has to show. An agent that replaces kube-proxy cannot reach the API
	// server through a ClusterIP, so an in-cluster agent needs this.
	Servers []string `yaml:"servers"`
	// Manifests is a directory of YAML and JSON files that takes the place of
	// the API server.
	Manifests string `yaml:"manifests"`
	// QPS and Burst limit requests to the API server (watches are not counted).
	QPS   float32 `yaml:"qps"`
	Burst int     `yaml:"burst"`
	// Coalesce is the least time between two batches to the same sink. The
	// first change after a pause is never delayed.
	Coalesce time.Duration `yaml:"coalesce"`
	// RetryMax is the longest pause before a refused batch is offered again.
	RetryMax time.Duration `yaml:"retryMax"`
}

// Default is the configuration of an agent without a source.
func Default() Config {
	return Config{QPS: 50, Burst: 100, Coalesce: 10 * time.Millisecond, RetryMax: 30 * time.Second}
}

// Enabled reports whether any source is configured.
func (c Config) Enabled() bool { return c.Kubeconfig != "" || c.InCluster || c.Manifests != "" }

// HasAPIServer reports whether the source is an API server.
func (c Config) HasAPIServer() bool { return c.Kubeconfig != "" || c.InCluster }

// Validate reports all faults at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.Enabled() {
		for _, msg := range validation.IsDNS1123Subdomain(c.NodeName) {
			fault("nodeName: %q: %s", c.NodeName, msg)
		}
	}
	if c.Kubeconfig != "" && c.InCluster {
		fault("inCluster: excludes kubeconfig")
	}
	if c.Manifests != "" && c.HasAPIServer() {
		fault("manifests: excludes kubeconfig and inCluster")
	}
	for field, path := range map[string]string{"kubeconfig": c.Kubeconfig, "manifests": c.Manifests} {
		if path != "" && !filepath.IsAbs(path) {
			fault("%s: %q is not an absolute path", field, path)
		}
	}
	for i, s := range c.Servers {
		if err := checkHostPort(s); err != nil {
			fault("servers[%d]: %w", i, err)
		}
	}
	return errors.Join(append(faults, c.validateLimits())...)
}

func (c Config) validateLimits() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if c.QPS <= 0 {
		fault("qps: %v is not above 0", c.QPS)
	}
	if c.Burst < 1 {
		fault("burst: %d is not above 0", c.Burst)
	}
	if c.Coalesce < 0 || c.Coalesce > time.Second {
		fault("coalesce: %v is not in 0s..1s", c.Coalesce)
	}
	if c.RetryMax < time.Second {
		fault("retryMax: %v is shorter than 1s", c.RetryMax)
	}
	return errors.Join(faults...)
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q: want host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q: port %q is not in 1..65535", s, port)
	}
	if net.ParseIP(host) == nil && len(validation.IsDNS1123Subdomain(strings.ToLower(host))) > 0 {
		return fmt.Errorf("%q: %q is neither an address nor a name", s, host)
	}
	return nil
}
