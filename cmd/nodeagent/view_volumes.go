// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"net/http"
	"strconv"
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
	// Debt is what its volumes may still ask for: promised and not yet taken, and
	// copies of what they have in common with snapshots and clones.
	Debt  int64  `json:"debt,omitempty"`
	Error string `json:"error,omitempty"`
}

// volumeView is one volume or snapshot; sizes are in bytes.
type volumeView struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Pool string `json:"pool"`
	// Bytes is the size that was asked for, Allocated what it occupies now, Debt
	// what a volume may still ask of the pool, and Alone what of a snapshot nobody
	// else has.
	Bytes     int64     `json:"bytes"`
	Allocated int64     `json:"allocated,omitempty"`
	Debt      int64     `json:"debt,omitempty"`
	Alone     int64     `json:"alone,omitempty"`
	FSType    string    `json:"fsType,omitempty"`
	Created   time.Time `json:"created"`
	Source    string    `json:"source,omitempty"`
	Snapshots int       `json:"snapshots,omitempty"`
	// Claim is whose volume it is, when that is known, and Pods are who has it: both
	// namespace and name, of a pod without them its uid.
	Claim      string   `json:"claim,omitempty"`
	Pods       []string `json:"pods,omitempty"`
	Staged     bool     `json:"staged,omitempty"`
	Conditions []string `json:"conditions,omitempty"`
}

// listVolumes answers GET /v1/volumes.
func listVolumes(m *volume.Manager) func(*http.Request) (volumesView, error) {
	return func(r *http.Request) (volumesView, error) {
		var v volumesView
		for _, p := range m.Pools(r.Context()) {
			view := poolView{Name: p.Name, Path: p.Path, Backend: p.Backend, Available: p.Capacity.Available, Debt: p.Capacity.Debt}
			if p.Err != nil {
				view.Error = p.Err.Error()
			}
			v.Pools = append(v.Pools, view)
		}
		for _, d := range m.Describe(r.Context()) {
			view := viewVolume(d.Volume)
			view.Allocated, view.Debt, view.Snapshots, view.Staged = d.Allocated, d.Debt, d.Snapshots, len(d.Staged) > 0
			for _, t := range d.Targets {
				view.Pods = append(view.Pods, cmp.Or(t.Pod, t.PodUID))
			}
			for _, c := range d.Conditions {
				view.Conditions = append(view.Conditions, c.Reason)
			}
			v.Volumes = append(v.Volumes, view)
		}
		for _, s := range m.Snapshots() {
			view := viewVolume(s)
			view.Allocated, view.Alone = m.Cost(r.Context(), s.ID)
			v.Snapshots = append(v.Snapshots, view)
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
	if name := v.Labels["pvc/name"]; name != "" {
		out.Claim = v.Labels["pvc/namespace"] + "/" + name
	}
	if v.Broken != nil {
		out.Conditions = append(out.Conditions, v.Broken.Error())
	}
	return out
}

func volumesCommand() *cobra.Command {
	cmd := showCommand("volumes", "Show pools, volumes and snapshots; check, export and import them", "/v1/volumes", volumesTable)
	cmd.AddCommand(fsckCommand(), exportCommand(), importCommand())
	return cmd
}

func volumesTable(v volumesView) *table {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	t := &table{header: []string{"POOL", "BACKEND", "AVAILABLE", "OWED", "PATH", "ERROR"}}
	for _, p := range v.Pools {
		t.add(p.Name, p.Backend, size(p.Available), size(p.Debt), p.Path, p.Error)
	}
	t.add()
	t.add("VOLUME", "POOL", "SIZE", "OCCUPIES", "OWED", "TYPE", "AGE", "SNAPSHOTS", "USED BY", "CLAIM", "NAME", "CONDITIONS")
	for _, o := range v.Volumes {
		t.add(o.ID, o.Pool, size(o.Bytes), size(o.Allocated), size(o.Debt), o.FSType, age(o.Created), strconv.Itoa(o.Snapshots),
			usedBy(o), cmp.Or(o.Claim, "-"), o.Name, strings.Join(o.Conditions, ","))
	}
	if len(v.Snapshots) == 0 {
		return t
	}
	t.add()
	t.add("SNAPSHOT", "POOL", "SIZE", "OCCUPIES", "ALONE", "AGE", "OF", "NAME")
	for _, o := range v.Snapshots {
		t.add(o.ID, o.Pool, size(o.Bytes), size(o.Allocated), size(o.Alone), age(o.Created), o.Source, o.Name)
	}
	return t
}

// usedBy says how far a volume is on its way to a pod.
func usedBy(v volumeView) string {
	switch {
	case len(v.Pods) > 0:
		return strings.Join(v.Pods, ",")
	case v.Staged:
		return "staged"
	default:
		return "-"
	}
}
