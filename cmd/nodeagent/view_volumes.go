// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// volumesView is the answer of GET /v1/volumes.
type volumesView struct {
	Pools     []poolView   `json:"pools"`
	Volumes   []volumeView `json:"volumes"`
	Snapshots []volumeView `json:"snapshots"`
}

// poolView is one pool; sizes are in bytes.
type poolView struct {
	Name      string `json:"name"`
	Path      string `json:"path"`
	Backend   string `json:"backend"`
	Available int64  `json:"available"`
	Error     string `json:"error,omitempty"`
}

// volumeView is one volume or snapshot; sizes are in bytes.
type volumeView struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"`
	Pool       string    `json:"pool"`
	Bytes      int64     `json:"bytes"`
	FSType     string    `json:"fsType,omitempty"`
	Created    time.Time `json:"created"`
	Source     string    `json:"source,omitempty"`
	Conditions []string  `json:"conditions,omitempty"`
}

// listVolumes answers GET /v1/volumes.
func listVolumes(m *volume.Manager) func(*http.Request) (volumesView, error) {
	return func(r *http.Request) (volumesView, error) {
		var v volumesView
		for _, p := range m.Pools(r.Context()) {
			view := poolView{Name: p.Name, Path: p.Path, Backend: p.Backend, Available: p.Capacity.Available}
			if p.Err != nil {
				view.Error = p.Err.Error()
			}
			v.Pools = append(v.Pools, view)
		}
		for _, vol := range m.List() {
			view := viewVolume(vol)
			if conds, err := m.Health(r.Context(), vol.ID); err == nil {
				for _, c := range conds {
					view.Conditions = append(view.Conditions, c.Reason)
				}
			}
			v.Volumes = append(v.Volumes, view)
		}
		for _, s := range m.Snapshots() {
			v.Snapshots = append(v.Snapshots, viewVolume(s))
		}
		return v, nil
	}
}

func viewVolume(v volume.Volume) volumeView {
	out := volumeView{
		ID: v.ID, Name: v.Name, Pool: v.Pool, Bytes: v.Bytes, FSType: v.FSType, Created: v.Created, Source: v.Volume,
	}
	if v.Block {
		out.FSType = "block"
	}
	if v.Source != nil {
		out.Source = v.Source.ID
	}
	if v.Broken != nil {
		out.Conditions = append(out.Conditions, v.Broken.Error())
	}
	return out
}

func volumesCommand() *cobra.Command {
	return showCommand("volumes", "Show pools, volumes and snapshots", "/v1/volumes", func(v volumesView) *table {
		t := &table{header: []string{"POOL", "BACKEND", "AVAILABLE", "PATH", "ERROR"}}
		for _, p := range v.Pools {
			t.add(p.Name, p.Backend, units.BytesSize(float64(p.Available)), p.Path, p.Error)
		}
		t.add()
		t.add("VOLUME", "POOL", "SIZE", "TYPE", "AGE", "NAME", "CONDITIONS")
		all := append(slices.Clone(v.Volumes), v.Snapshots...)
		for _, o := range all {
			kind := o.FSType
			if kind == "" {
				kind = "snapshot"
			}
			t.add(o.ID, o.Pool, units.BytesSize(float64(o.Bytes)), kind, age(o.Created), o.Name, strings.Join(o.Conditions, ","))
		}
		return t
	})
}
