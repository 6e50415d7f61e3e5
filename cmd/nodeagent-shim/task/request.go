// SPDX-License-Identifier: Apache-2.0

package task

import (
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// request is the union of the service's requests. All name their container in field 1, most a process in field 2.
type request struct {
	ID, ExecID, Bundle, Path string
	Stdin                    bool // of CloseIO
	In, Out, Err             string
	Terminal, All            bool
	Rootfs                   []oci.Mount
	Checkpoint               string
	Signal, Width, Height    uint32
	// Any is the message's one value of a type of its own: options, a process's spec, resources.
	Any wire.Any
}

func readRequest(method string, body []byte) (*request, error) {
	r := &request{}
	err := wire.Read(body, func(field int, v wire.Value) error {
		if field == 1 {
			r.ID = v.String()
			return nil
		}
		switch method {
		case "Create":
			return r.readCreate(field, v)
		case "Exec":
			return r.readExec(field, v)
		case "Update", "Checkpoint":
			return r.readAny(method, field, v)
		}
		r.readShort(method, field, v)
		return nil
	})
	return r, err
}

func (r *request) readCreate(field int, v wire.Value) (err error) {
	switch field {
	case 2:
		r.Bundle = v.String()
	case 3:
		var m oci.Mount
		m, err = readMount(v.Bytes)
		r.Rootfs = append(r.Rootfs, m)
	case 4:
		r.Terminal = v.Bool()
	case 5:
		r.In = v.String()
	case 6:
		r.Out = v.String()
	case 7:
		r.Err = v.String()
	case 8:
		r.Checkpoint = v.String()
	case 10:
		r.Any, err = v.Any()
	}
	return err
}

func (r *request) readExec(field int, v wire.Value) (err error) {
	switch field {
	case 2:
		r.ExecID = v.String()
	case 3:
		r.Terminal = v.Bool()
	case 4:
		r.In = v.String()
	case 5:
		r.Out = v.String()
	case 6:
		r.Err = v.String()
	case 7:
		r.Any, err = v.Any()
	}
	return err
}

func (r *request) readAny(method string, field int, v wire.Value) (err error) {
	switch {
	case method == "Update" && field == 2, method == "Checkpoint" && field == 3:
		r.Any, err = v.Any()
	case method == "Checkpoint" && field == 2:
		r.Path = v.String()
	}
	return err
}

func (r *request) readShort(method string, field int, v wire.Value) {
	n := uint32(v.Uint) //nolint:gosec // these fields are uint32
	switch {
	case field == 2:
		r.ExecID = v.String()
	case method == "Kill" && field == 3:
		r.Signal = n
	case method == "Kill" && field == 4:
		r.All = v.Bool()
	case method == "ResizePty" && field == 3:
		r.Width = n
	case method == "ResizePty" && field == 4:
		r.Height = n
	case method == "CloseIO" && field == 3:
		r.Stdin = v.Bool()
	}
}

func readMount(b []byte) (oci.Mount, error) {
	var m oci.Mount
	err := wire.Read(b, func(field int, v wire.Value) error {
		switch field {
		case 1:
			m.Type = v.String()
		case 2:
			m.Source = v.String()
		case 3:
			m.Target = v.String()
		case 4:
			m.Options = append(m.Options, v.String())
		}
		return nil
	})
	return m, err
}

// RuntimeOf reads the options of the runc family of shims.
func RuntimeOf(options wire.Any) (*oci.Runtime, error) {
	r := &oci.Runtime{}
	if options.Type != "containerd.runc.v1.Options" {
		return r, nil
	}
	err := wire.Read(options.Value, func(field int, v wire.Value) error {
		switch field {
		case 1:
			r.NoPivot = v.Bool()
		case 2:
			r.NoKeyring = v.Bool()
		case 6:
			r.Binary = v.String()
		case 7:
			r.Root = v.String()
		case 9:
			r.Systemd = v.Bool()
		}
		return nil
	})
	return r, err
}
