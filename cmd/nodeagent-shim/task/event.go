// SPDX-License-Identifier: Apache-2.0

package task

import (
	"time"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// Event is one of containerd's task events.
type Event struct {
	Topic string
	At    time.Time
	Value wire.Any
}

func event(topic, name string, m wire.Message) Event {
	return Event{Topic: topic, At: time.Now(), Value: wire.Any{Type: "containerd.events." + name, Value: m}}
}

func created(r *request, pid int) Event {
	var m, io wire.Message
	m.String(1, r.ID)
	m.String(2, r.Bundle)
	io.String(1, r.In)
	io.String(2, r.Out)
	io.String(3, r.Err)
	io.Bool(4, r.Terminal)
	m.Bytes(4, io)
	m.String(5, r.Checkpoint)
	m.Uint(6, uint64(pid)) //nolint:gosec // process numbers are positive
	return event("/tasks/create", "TaskCreate", m)
}

func started(id, exec string, pid int) Event {
	var m wire.Message
	m.String(1, id)
	if exec == "" {
		m.Uint(2, uint64(pid)) //nolint:gosec // process numbers are positive
		return event("/tasks/start", "TaskStart", m)
	}
	m.String(2, exec)
	m.Uint(3, uint64(pid)) //nolint:gosec // process numbers are positive
	return event("/tasks/exec-started", "TaskExecStarted", m)
}

func execAdded(id, exec string) Event {
	var m wire.Message
	m.String(1, id)
	m.String(2, exec)
	return event("/tasks/exec-added", "TaskExecAdded", m)
}

// exited tells of a process; the first one carries the container's own id.
func exited(id, exec string, pid int, e reap.Exit) Event {
	var m wire.Message
	m.String(1, id)
	if exec == "" {
		exec = id
	}
	m.String(2, exec)
	m.Uint(3, uint64(pid)) //nolint:gosec // process numbers are positive
	m.Uint(4, uint64(e.Status))
	m.Time(5, e.At)
	return event("/tasks/exit", "TaskExit", m)
}

func deleted(id string, pid int, e reap.Exit) Event {
	var m wire.Message
	m.String(1, id)
	m.Uint(2, uint64(pid)) //nolint:gosec // process numbers are positive
	m.Uint(3, uint64(e.Status))
	m.Time(4, e.At)
	return event("/tasks/delete", "TaskDelete", m)
}

func byID(topic, name, id string) Event {
	var m wire.Message
	m.String(1, id)
	return event(topic, name, m)
}

func oom(id string) Event     { return byID("/tasks/oom", "TaskOOM", id) }
func paused(id string) Event  { return byID("/tasks/paused", "TaskPaused", id) }
func resumed(id string) Event { return byID("/tasks/resumed", "TaskResumed", id) }

func checkpointed(id, path string) Event {
	var m wire.Message
	m.String(1, id)
	m.String(2, path)
	return event("/tasks/checkpointed", "TaskCheckpointed", m)
}
