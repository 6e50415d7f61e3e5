// SPDX-License-Identifier: Apache-2.0

// Package packaging carries the files by which nodeagent comes onto a node:
// systemd unit, kubelet drop-ins, first configuration and Helm chart. The
// packages that `make package` builds and `nodeagent install` both take them
// from here, so there is one truth for each.
package packaging

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

// Paths on a node that have to agree between packages.
const (
	// UnitPath is where administrators' units are.
	UnitPath = "/etc/systemd/system/nodeagent.service"
	// ConfigPath is where the daemon looks.
	ConfigPath = "/etc/nodeagent/config.yaml"
	// KubeconfigPath is what ConfigPath names.
	KubeconfigPath = "/etc/nodeagent/kubeconfig"
	// KubeletUnitDropIn and KubeletConfigDropIn point the kubelet at the daemon.
	KubeletUnitDropIn   = "/etc/systemd/system/kubelet.service.d/20-nodeagent.conf"
	KubeletConfigDropIn = "/etc/kubernetes/kubelet.conf.d/50-nodeagent.conf"
	// CNIBinDir is where runtimes look for CNI programs.
	CNIBinDir = "/opt/cni/bin"
	// HostBinDir is where `nodeagent install` puts programs: writable on
	// distributions whose /usr is not.
	HostBinDir = "/opt/nodeagent/bin"
)

// Programs are what a node needs, by name.
const (
	Daemon = "nodeagent"
	Shim   = "nodeagent-shim"
	Plugin = "nodeagent-cni"
)

//go:embed systemd kubelet config.yaml all:chart
var files embed.FS

// Unit is the systemd unit for a daemon in binDir.
func Unit(binDir string) ([]byte, error) {
	data, err := files.ReadFile("systemd/nodeagent.service")
	if err != nil {
		return nil, fmt.Errorf("read unit: %w", err)
	}
	return []byte(strings.ReplaceAll(string(data), "@BINDIR@", binDir)), nil
}

// DefaultConfig is the first configuration of a node.
func DefaultConfig() ([]byte, error) { return files.ReadFile("config.yaml") }

// KubeletDropIns are the files for the kubelet, by their path on the node.
func KubeletDropIns() (map[string][]byte, error) {
	out := map[string][]byte{}
	for path, name := range map[string]string{
		KubeletUnitDropIn: "kubelet/20-nodeagent.conf", KubeletConfigDropIn: "kubelet/50-nodeagent.conf",
	} {
		data, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read kubelet drop-in: %w", err)
		}
		out[path] = data
	}
	return out, nil
}

// Chart is the Helm chart's directory.
func Chart() (fs.FS, error) { return fs.Sub(files, "chart") }
