// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Config says which controllers run, and how.
type Config struct {
	// Driver is the CSI driver's name.
	Driver string `yaml:"driver"`
	// TopologyKey is the node label by which volumes are bound to their node.
	TopologyKey string `yaml:"topologyKey"`
	// CSIDriver creates the CSIDriver object and keeps it right.
	CSIDriver bool `yaml:"csiDriver"`
	// Provisioner creates and deletes volumes for claims.
	Provisioner bool `yaml:"provisioner"`
	// Capacity publishes CSIStorageCapacity objects for the scheduler.
	Capacity bool `yaml:"capacity"`
	// Resizer grows volumes.
	Resizer bool `yaml:"resizer"`
	// Modifier applies VolumeAttributesClasses.
	Modifier bool `yaml:"modifier"`
	// Snapshotter takes and deletes snapshots, of single volumes and of groups; it
	// begins when the snapshot CRDs are there, and needs a snapshot-controller.
	Snapshotter bool `yaml:"snapshotter"`
	// CapacityPeriod is how often capacity is published without an event.
	CapacityPeriod time.Duration `yaml:"capacityPeriod"`
	// ImmediateDelay is the most that this node waits before it claims an
	// Immediate volume, so that not all nodes claim it at once.
	ImmediateDelay time.Duration `yaml:"immediateDelay"`
	// Timeout is for one call of the driver.
	Timeout time.Duration `yaml:"timeout"`
	// Workers is how many objects each controller works on at once.
	Workers int `yaml:"workers"`
}

// Default runs every controller.
func Default() Config {
	return Config{
		Driver: "csi.nodeagent.dev", TopologyKey: "topology.csi.nodeagent.dev/node",
		CSIDriver: true, Provisioner: true, Capacity: true, Resizer: true, Modifier: true, Snapshotter: true,
		CapacityPeriod: time.Minute, ImmediateDelay: 5 * time.Second, Timeout: 2 * time.Minute, Workers: 8,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	// The shape that csi-sanity demands: letters at both ends.
	if !regexp.MustCompile(`^[a-zA-Z][A-Za-z0-9-.]{0,61}[a-zA-Z]$`).MatchString(c.Driver) {
		fault("driver: %q is not a driver name", c.Driver)
	}
	for _, msg := range validation.IsQualifiedName(c.TopologyKey) {
		fault("topologyKey: %q: %s", c.TopologyKey, msg)
	}
	if c.CapacityPeriod < time.Second {
		fault("capacityPeriod: %v is shorter than 1s", c.CapacityPeriod)
	}
	if c.ImmediateDelay < 0 || c.ImmediateDelay > time.Minute {
		fault("immediateDelay: %v is not in 0s..1m", c.ImmediateDelay)
	}
	if c.Timeout < time.Second {
		fault("timeout: %v is shorter than 1s", c.Timeout)
	}
	if c.Workers < 1 || c.Workers > 128 {
		fault("workers: %d is not in 1..128", c.Workers)
	}
	return errors.Join(faults...)
}
