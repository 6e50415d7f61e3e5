// SPDX-License-Identifier: Apache-2.0

// Package config owns the one configuration file of nodeagent: its versioned
// schema, strict parsing with line numbers, and validation that reports all
// faults at once. Only cmd reads files; rooms get their own Config value.
package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/util"

	"github.com/nodeagent/nodeagent/cri"
)

// APIVersion and Kind head every configuration file.
const (
	APIVersion = "nodeagent.dev/v1alpha1"
	Kind       = "NodeAgentConfiguration"
)

// DefaultPath is where run, doctor and config check look without --config.
const DefaultPath = "/etc/nodeagent/config.yaml"

// Node says who this node is and where the daemon keeps its things.
type Node struct {
	// Name is the Kubernetes node name; empty means the host name, lower case.
	Name string `yaml:"name"`
	// RunDir holds sockets, locks and state that dies with the boot (a tmpfs).
	RunDir string `yaml:"runDir"`
	// StateDir holds what must survive a reboot.
	StateDir string `yaml:"stateDir"`
	// Metrics is the listener of /metrics, /healthz and /readyz; empty: none.
	Metrics string `yaml:"metrics"`
}

// Log says what is logged and how.
type Log struct {
	// Level is debug, info, warn or error. Reloaded on SIGHUP.
	Level string `yaml:"level"`
	// Format is text or json.
	Format string `yaml:"format"`
}

func defaultNode() Node {
	return Node{RunDir: "/run/nodeagent", StateDir: "/var/lib/nodeagent", Metrics: "127.0.0.1:9470"}
}

func (n Node) validate() error {
	var errs []error
	for field, dir := range map[string]string{"runDir": n.RunDir, "stateDir": n.StateDir} {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", field, dir))
		}
	}
	if n.Metrics != "" {
		if _, _, err := net.SplitHostPort(n.Metrics); err != nil {
			errs = append(errs, fmt.Errorf("metrics: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (l Log) validate() error {
	var errs []error
	if !oneOf(l.Level, "debug", "info", "warn", "error") {
		errs = append(errs, fmt.Errorf("level: %q is not one of debug, info, warn, error", l.Level))
	}
	if !oneOf(l.Format, "text", "json") {
		errs = append(errs, fmt.Errorf("format: %q is not one of text, json", l.Format))
	}
	return errors.Join(errs...)
}

func oneOf(s string, allowed ...string) bool {
	return slices.Contains(allowed, s)
}

// hostName returns the node name that the kubelet would choose.
func hostName() (string, error) {
	h, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read host name: %w", err)
	}
	return strings.ToLower(strings.TrimSpace(h)), nil
}

// cgroupDriver is systemd's where it runs the machine: two writers of one tree of cgroups undo each other's work.
func cgroupDriver() string {
	if util.IsRunningSystemd() {
		return cri.CgroupDriverSystemd
	}
	return cri.CgroupDriverCgroupfs
}
