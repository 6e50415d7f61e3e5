// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is what containerd keeps of a container: enough to run it, and,
// in Extensions, enough to know it again when our own records are gone.
type Container struct {
	ID string
	// Labels that containerd refuses (a pair of more than 4096 bytes) are left out.
	Labels      map[string]string
	Image       string
	Runtime     Runtime
	Snapshotter string
	SnapshotKey string
	Spec        *specs.Spec
	// Extensions are opaque values by name.
	Extensions map[string][]byte
}

// maxLabel is containerd's limit of a label's key and value together.
const maxLabel = 4096

// extension is how a value of Extensions travels.
type extension struct {
	typ   string
	value []byte
}

func (e extension) GetTypeUrl() string { return e.typ } //nolint:revive // var-naming: the interface's spelling
func (e extension) GetValue() []byte   { return e.value }

var _ typeurl.Any = extension{}

// CreateContainer writes the container's record.
func (c *Client) CreateContainer(ctx context.Context, ct Container) error {
	spec, err := typeurl.MarshalAny(ct.Spec)
	if err != nil {
		return fmt.Errorf("encode spec of container %s: %w", ct.ID, err)
	}
	opts, err := ct.Runtime.options()
	if err != nil {
		return err
	}
	rec := containers.Container{
		ID:          ct.ID,
		Labels:      fitting(ct.Labels),
		Image:       ct.Image,
		Runtime:     containers.RuntimeInfo{Name: ct.Runtime.Type, Options: opts},
		Spec:        spec,
		Snapshotter: ct.Snapshotter,
		SnapshotKey: ct.SnapshotKey,
		Extensions:  map[string]typeurl.Any{},
	}
	switch {
	case ct.Runtime.Sandbox != "":
		rec.SandboxID = ct.Runtime.Sandbox
		rec.Runtime.Name = ct.Runtime.name() // a containerd that starts looks for the program by it
	case ct.Runtime.Joins:
		rec.SandboxID = ct.ID // that of the record that KeepTask writes
	}
	for name, v := range ct.Extensions {
		rec.Extensions[name] = extension{typ: name, value: v}
	}
	if _, err := c.c.ContainerService().Create(ctx, rec); err != nil {
		return fmt.Errorf("create container %s in containerd: %w", ct.ID, err)
	}
	return nil
}

func fitting(labels map[string]string) map[string]string {
	out := make(map[string]string, len(labels))
	for k, v := range labels {
		if len(k)+len(v) <= maxLabel {
			out[k] = v
		}
	}
	return out
}

// Spec reads a container's OCI specification back.
func (c *Client) Spec(ctx context.Context, id string) (*specs.Spec, error) {
	rec, err := c.c.ContainerService().Get(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("read container %s in containerd: %w", id, err)
	}
	var s specs.Spec
	if rec.Spec == nil {
		return nil, fmt.Errorf("container %s has no specification: %w", id, errdefs.ErrFailedPrecondition)
	}
	if err := json.Unmarshal(rec.Spec.GetValue(), &s); err != nil {
		return nil, fmt.Errorf("decode spec of container %s: %w", id, err)
	}
	return &s, nil
}

// SetSpec replaces the specification of a container that has no task yet.
func (c *Client) SetSpec(ctx context.Context, id string, s *specs.Spec) error {
	v, err := typeurl.MarshalAny(s)
	if err != nil {
		return fmt.Errorf("encode spec of container %s: %w", id, err)
	}
	if _, err := c.c.ContainerService().Update(ctx, containers.Container{ID: id, Spec: v}, "spec"); err != nil {
		return fmt.Errorf("update spec of container %s in containerd: %w", id, err)
	}
	return nil
}

// ListContainers returns containers by a containerd filter, such as
// `labels."io.cri-containerd.kind"==container`; specs are left out.
func (c *Client) ListContainers(ctx context.Context, filter string) ([]Container, error) {
	recs, err := c.c.ContainerService().List(ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("list containers in containerd: %w", err)
	}
	out := make([]Container, 0, len(recs))
	for _, r := range recs {
		ct := Container{
			ID: r.ID, Labels: r.Labels, Image: r.Image, Runtime: Runtime{Type: r.Runtime.Name},
			Snapshotter: r.Snapshotter, SnapshotKey: r.SnapshotKey, Extensions: map[string][]byte{},
		}
		for name, v := range r.Extensions {
			ct.Extensions[name] = v.GetValue()
		}
		out = append(out, ct)
	}
	return out, nil
}

// DeleteContainer removes the container's record; the absent is removed already.
func (c *Client) DeleteContainer(ctx context.Context, id string) error {
	if err := c.c.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s in containerd: %w", id, err)
	}
	return nil
}
