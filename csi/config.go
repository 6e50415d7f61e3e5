// SPDX-License-Identifier: Apache-2.0

// Package csi speaks the Container Storage Interface 1.13 for volumes on this
// node's disks: Identity, Node, Controller, GroupController and SnapshotMetadata
// on one socket, and the kubelet's registration on another, without sidecars.
//
// It translates and nothing more: volumes live in package volume, and errors
// become gRPC codes in exactly one place (codeOf). It knows no API server: who
// watches claims calls Server.Volumes.
package csi

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// DriverName is the driver's default name.
const DriverName = "csi.nodeagent.dev"

// Config of the storage room.
type Config struct {
	// DriverName is what StorageClasses name as their provisioner.
	DriverName string `yaml:"driverName"`
	// NodeName is this node's name in the cluster; cmd fills it in.
	NodeName string `yaml:"-"`
	// Socket serves CSI; the kubelet dials it.
	Socket string `yaml:"socket"`
	// RegistrationSocket is where the kubelet looks for plugins; empty turns
	// registration off (for a node-driver-registrar beside us).
	RegistrationSocket string `yaml:"registrationSocket"`
	// MaxVolumes is how many volumes the scheduler may place here; 0 is no limit.
	MaxVolumes int64 `yaml:"maxVolumes,omitempty"`
	// StateDir keeps what must survive a reboot outside the pools.
	StateDir string `yaml:"stateDir"`
	// CgroupRoot is where the cgroup hierarchies are mounted.
	CgroupRoot string               `yaml:"cgroupRoot"`
	Pools      []volume.PoolConfig  `yaml:"pools"`
	Classes    []volume.ClassConfig `yaml:"classes,omitempty"`
}

// Default is one pool of image files under /var/lib/nodeagent.
func Default() Config {
	v := volume.Default()
	return Config{
		DriverName:         DriverName,
		Socket:             "/var/lib/kubelet/plugins/" + DriverName + "/csi.sock",
		RegistrationSocket: "/var/lib/kubelet/plugins_registry/" + DriverName + "-reg.sock",
		StateDir:           v.StateDir, CgroupRoot: v.CgroupRoot, Pools: v.Pools,
	}
}

func (c Config) volumes() volume.Config {
	return volume.Config{NodeName: c.NodeName, StateDir: c.StateDir, CgroupRoot: c.CgroupRoot, Pools: c.Pools, Classes: c.Classes}
}

// maxSocketPath is what fits in a sockaddr_un.
const maxSocketPath = 107

// Validate reports every fault, each beginning with the path of its field.
func (c Config) Validate() error {
	var errs []error
	if !regexp.MustCompile(`^[a-zA-Z]([a-zA-Z0-9.-]{0,61}[a-zA-Z])?$`).MatchString(c.DriverName) {
		errs = append(errs, fmt.Errorf("driverName: %q must begin and end with a letter and have at most 63 letters, digits, '.' and '-'", c.DriverName))
	}
	for field, path := range map[string]string{"socket": c.Socket, "registrationSocket": c.RegistrationSocket} {
		if path == "" && field == "registrationSocket" {
			continue
		}
		if !filepath.IsAbs(path) || !strings.HasSuffix(path, ".sock") || len(path) > maxSocketPath {
			errs = append(errs, fmt.Errorf("%s: %q must be an absolute path that ends in .sock, at most %d bytes", field, path, maxSocketPath))
		}
	}
	if c.MaxVolumes < 0 {
		errs = append(errs, errors.New("maxVolumes: must not be negative"))
	}
	return errors.Join(append(errs, c.volumes().Validate())...)
}

// TopologyKey is the node label by which the scheduler finds this node's volumes.
func (c Config) TopologyKey() string { return "topology." + c.DriverName + "/node" }
