// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func (b *builder) checkDevices() {
	for i, d := range b.in.Config.GetDevices() {
		field := fmt.Sprintf("devices[%d].", i)
		if !path.IsAbs(d.GetHostPath()) {
			b.faults.invalid(field+"host_path", "%q is not an absolute path", d.GetHostPath())
		}
		if d.GetContainerPath() != "" {
			checkInside(&b.faults, field+"container_path", d.GetContainerPath())
		}
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
			b.faults.invalid(field+"permissions", "%q is not made of r, w and m", p)
		}
	}
}

// devices adds the nodes the pod names, and for privileged containers all of the host's; the pod's come first and win.
func (b *builder) devices() error {
	l := b.spec.Linux
	for i, d := range b.in.Config.GetDevices() {
		if err := b.addDevice(d); err != nil {
			return fmt.Errorf("devices[%d]: %w", i, err)
		}
	}
	if !b.security().GetPrivileged() {
		return nil
	}
	if !b.in.Handler.PrivilegedWithoutHostDevices {
		nodes, err := b.in.System.Devices("/dev")
		if err != nil {
			return fmt.Errorf("devices of the host: %w", err)
		}
		for _, node := range nodes {
			b.addNode(node)
		}
	}
	if !b.in.Handler.PrivilegedWithoutHostDevices || b.in.Handler.PrivilegedAllDevicesAllowed {
		l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	return nil
}

func (b *builder) addDevice(d *runtimeapi.Device) error {
	from, err := b.in.System.Source(d.GetHostPath(), false)
	if err != nil {
		return err
	}
	nodes, err := b.in.System.Devices(from)
	if err != nil {
		return err
	}
	if len(nodes) == 0 {
		return fmt.Errorf("%s: no device nodes: %w", d.GetHostPath(), errdefs.ErrInvalidArgument)
	}
	to := d.GetContainerPath()
	if to == "" {
		to = d.GetHostPath()
	}
	for _, node := range nodes {
		node.Path = path.Join(to, strings.TrimPrefix(node.Path, from))
		b.own(&node)
		b.addNode(node)
		b.spec.Linux.Resources.Devices = append(b.spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: node.Type, Major: new(node.Major), Minor: new(node.Minor), Access: d.GetPermissions(),
		})
	}
	return nil
}

// own gives a node to the container's user when the administrator wants that (root's nodes are of no use to other users).
func (b *builder) own(node *specs.LinuxDevice) {
	if !b.in.Policy.DeviceOwnershipFromSecurityContext {
		return
	}
	if id := b.security().GetRunAsUser().GetValue(); id != 0 {
		node.UID = new(uint32(id)) //nolint:gosec // checkUser bounded it
	}
	if id := b.security().GetRunAsGroup().GetValue(); id != 0 {
		node.GID = new(uint32(id)) //nolint:gosec // checkUser bounded it
	}
}

func (b *builder) addNode(node specs.LinuxDevice) {
	if !slices.ContainsFunc(b.spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == node.Path }) {
		b.spec.Linux.Devices = append(b.spec.Linux.Devices, node)
	}
}

// cdiNames are the CDI devices of the typed field, then those that older device plugins write as annotations.
func (b *builder) cdiNames() ([]string, error) {
	var names []string
	for _, d := range b.in.Config.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	_, more, err := cdi.ParseAnnotations(b.in.Config.GetAnnotations())
	if err != nil {
		return nil, fmt.Errorf("annotations: CDI devices: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for _, name := range more {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// checkCDI injects the devices into a spec of no use, to know that they exist before anything is touched.
func (b *builder) checkCDI() error {
	scratch := &specs.Spec{}
	return b.inject(scratch)
}

func (b *builder) cdi() error { return b.inject(b.spec) }

func (b *builder) inject(s *specs.Spec) error {
	names, err := b.cdiNames()
	if err != nil || len(names) == 0 {
		return err
	}
	if b.in.CDI == nil {
		return fmt.Errorf("CDI_devices: CDI is disabled on this node: %w", errdefs.ErrFailedPrecondition)
	}
	unresolved, err := b.in.CDI.InjectDevices(s, names...)
	if len(unresolved) > 0 {
		return fmt.Errorf("CDI_devices: no such device: %s: %w", strings.Join(unresolved, ", "), errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("CDI_devices: inject %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}
