// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/packaging"
)

// Mode is what runs the daemon.
type Mode string

// Modes.
const (
	// ModeHost: a systemd unit of the node.
	ModeHost Mode = "host"
	// ModePod: the pod that installs, beside another CRI runtime.
	ModePod Mode = "pod"
)

// Options say what to install where.
type Options struct {
	// Root is the node's root directory: "/" on the node, its mount in a pod.
	Root string
	Mode Mode
	// Version is recorded.
	Version string
	// Programs is the directory that the programs are taken from.
	Programs string
	// BinDir is where they go on the node; empty: packaging.HostBinDir.
	BinDir string
	// CNIBinDir is where the node's runtime looks for CNI programs; empty:
	// packaging.CNIBinDir.
	CNIBinDir string
	// Config is a configuration file to install, merged with what the mode needs;
	// empty installs the default where there is none.
	Config string
	// Set are "path.to.field=value" for what Config leaves out.
	Set []string
	// Node is the node's name; empty leaves it to the daemon.
	Node string
	// Token and CA are files with the identity for the API server; empty: the
	// kubeconfig is a person's business.
	Token, CA string
	// Servers are addresses of the API server; empty: the kubelet's.
	Servers []string
	// Kubelet writes the kubelet's drop-ins.
	Kubelet bool
}

// Deps are what the installer works with.
type Deps struct {
	Log *slog.Logger
	// CheckConfig says what is wrong with a configuration before it is written;
	// may be nil.
	CheckConfig func(data []byte) error
	// Host runs things on the node; nil: the real one.
	Host Host
	// Env reads the environment: where a pod learns the API server's ClusterIP.
	Env func(string) string
}

func (o Options) validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for flag, path := range map[string]string{"root": o.Root, "programs": o.Programs} {
		if !filepath.IsAbs(path) {
			fault("%s: %q is not an absolute path", flag, path)
		}
	}
	for flag, path := range map[string]string{"bin-dir": o.BinDir, "cni-bin-dir": o.CNIBinDir} {
		if path != "" && !filepath.IsAbs(path) {
			fault("%s: %q is not an absolute path", flag, path)
		}
	}
	if o.Mode != ModeHost && o.Mode != ModePod {
		fault("mode: %q is not one of host, pod", o.Mode)
	}
	if o.Mode == ModePod && o.Kubelet {
		fault("kubelet: in mode pod another runtime serves the kubelet")
	}
	if (o.Token == "") != (o.CA == "") {
		fault("token and ca: both or none")
	}
	for _, s := range o.Set {
		if path, _, ok := strings.Cut(s, "="); !ok || path == "" || strings.Contains("."+path+".", "..") {
			fault("set: %q is not path.to.field=value", s)
		}
	}
	return errors.Join(faults...)
}

func (o Options) binDir() string { return cmp.Or(o.BinDir, packaging.HostBinDir) }

func (o Options) cniBinDir() string { return cmp.Or(o.CNIBinDir, packaging.CNIBinDir) }
