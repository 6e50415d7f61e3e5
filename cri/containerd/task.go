// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/status"
)

// Streams are where a process's standard streams go: paths of FIFOs, or URIs
// that the shim understands. Empty means /dev/null.
type Streams struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// Exit says how a process ended.
type Exit struct {
	PID  uint32
	Code uint32
	At   time.Time
}

// TaskState is a task's or process's state as containerd tells it.
type TaskState struct {
	ContainerID string
	PID         uint32
	// Status is Created, Running, Stopped, Paused.
	Status task.Status
	// Exit is meaningful when Status is Stopped.
	Exit    Exit
	Streams Streams
}

// CreateTask makes the container's task with its root file system mounted; its
// first process waits for StartProcess. A Runtime with the address of a running
// shim makes it there, which wants a container of a Runtime with Joins and the
// record that KeepTask writes; without an address that record must not be there yet.
func (c *Client) CreateTask(ctx context.Context, id string, r Runtime, rootfs []mount.Mount, s Streams) (uint32, error) {
	opts, err := r.options()
	if err != nil {
		return 0, err
	}
	req := &tasks.CreateTaskRequest{
		ContainerID: id, Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Terminal: s.Terminal,
		RuntimePath: r.Path, Options: typeurl.MarshalProto(opts),
	}
	if r.Address != "" {
		req.TaskApiAddress, req.TaskApiVersion = r.Address, taskVersion
	}
	for _, m := range rootfs {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if r.RestoreFrom != "" {
		// A descriptor of no content: containerd takes the path from its annotation.
		req.Checkpoint = &types.Descriptor{Annotations: map[string]string{"RestoreFromPath": r.RestoreFrom}}
	}
	resp, err := c.c.TaskService().Create(ctx, req)
	for try := 1; shimEnded(err) && try < shimTries; try++ {
		select {
		case <-time.After(shimPause << try):
		case <-ctx.Done():
		}
		resp, err = c.c.TaskService().Create(ctx, req)
	}
	if err != nil {
		return 0, fmt.Errorf("create task %s: %w", id, errgrpc.ToNative(err))
	}
	return resp.Pid, nil
}

// A pod's shim ends with the pod's last container. A task that is made in that
// moment still finds it, and the next try starts another one.
const (
	shimTries = 5
	shimPause = 5 * time.Millisecond
)

// shimEnded tells whether the shim ended under a request that it had not begun to serve.
func shimEnded(err error) bool {
	return err != nil && strings.HasSuffix(status.Convert(err).Message(), ttrpc.ErrClosed.Error())
}

// taskVersion is the version of the task service that nodeagent's shim serves.
const taskVersion = 3

// Process names a process of a container: the first one when ExecID is empty.
type Process struct {
	ContainerID string
	ExecID      string
}

// String is the container's id, or "container/exec".
func (p Process) String() string {
	if p.ExecID == "" {
		return p.ContainerID
	}
	return p.ContainerID + "/" + p.ExecID
}

// StartProcess lets a created process run.
func (c *Client) StartProcess(ctx context.Context, p Process) (uint32, error) {
	resp, err := c.c.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: p.ContainerID, ExecID: p.ExecID})
	if err != nil {
		return 0, fmt.Errorf("start process %s: %w", p, errgrpc.ToNative(err))
	}
	return resp.Pid, nil
}

// WaitProcess returns when the process has ended.
func (c *Client) WaitProcess(ctx context.Context, p Process) (Exit, error) {
	resp, err := c.c.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: p.ContainerID, ExecID: p.ExecID})
	if err != nil {
		return Exit{}, fmt.Errorf("wait for process %s: %w", p, errgrpc.ToNative(err))
	}
	return Exit{Code: resp.ExitStatus, At: resp.ExitedAt.AsTime()}, nil
}

// KillProcess sends a signal.
func (c *Client) KillProcess(ctx context.Context, p Process, sig syscall.Signal) error {
	_, err := c.c.TaskService().Kill(ctx, &tasks.KillRequest{
		ContainerID: p.ContainerID, ExecID: p.ExecID, Signal: uint32(sig), //nolint:gosec // signals are small
	})
	if err != nil {
		return fmt.Errorf("send %s to process %s: %w", sig, p, errgrpc.ToNative(err))
	}
	return nil
}

// DeleteTask removes a task whose first process has ended, or never ran.
func (c *Client) DeleteTask(ctx context.Context, id string) (Exit, error) {
	resp, err := c.c.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err != nil {
		return Exit{}, fmt.Errorf("delete task %s: %w", id, errgrpc.ToNative(err))
	}
	return Exit{PID: resp.Pid, Code: resp.ExitStatus, At: resp.ExitedAt.AsTime()}, nil
}

// Exec prepares another process in a running container; StartProcess runs it.
func (c *Client) Exec(ctx context.Context, p Process, spec *specs.Process, s Streams) error {
	v, err := typeurl.MarshalAnyToProto(spec)
	if err != nil {
		return fmt.Errorf("encode process %s: %w", p, err)
	}
	_, err = c.c.TaskService().Exec(ctx, &tasks.ExecProcessRequest{
		ContainerID: p.ContainerID, ExecID: p.ExecID, Spec: v,
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Terminal: s.Terminal,
	})
	if err != nil {
		return fmt.Errorf("exec process %s: %w", p, errgrpc.ToNative(err))
	}
	return nil
}

// DeleteProcess removes an exec'd process that has ended or never ran.
func (c *Client) DeleteProcess(ctx context.Context, p Process) (Exit, error) {
	resp, err := c.c.TaskService().DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: p.ContainerID, ExecID: p.ExecID})
	if err != nil {
		return Exit{}, fmt.Errorf("delete process %s: %w", p, errgrpc.ToNative(err))
	}
	return Exit{PID: resp.Pid, Code: resp.ExitStatus, At: resp.ExitedAt.AsTime()}, nil
}

// ResizeTerminal sets the size of a process's terminal.
func (c *Client) ResizeTerminal(ctx context.Context, p Process, width, height uint32) error {
	_, err := c.c.TaskService().ResizePty(ctx, &tasks.ResizePtyRequest{
		ContainerID: p.ContainerID, ExecID: p.ExecID, Width: width, Height: height,
	})
	if err != nil {
		return fmt.Errorf("resize terminal of %s: %w", p, errgrpc.ToNative(err))
	}
	return nil
}

// CloseStdin closes the process's standard input for good.
func (c *Client) CloseStdin(ctx context.Context, p Process) error {
	_, err := c.c.TaskService().CloseIO(ctx, &tasks.CloseIORequest{ContainerID: p.ContainerID, ExecID: p.ExecID, Stdin: true})
	if err != nil {
		return fmt.Errorf("close stdin of %s: %w", p, errgrpc.ToNative(err))
	}
	return nil
}

// UpdateTask changes the resources of a running task.
func (c *Client) UpdateTask(ctx context.Context, id string, r *specs.LinuxResources, annotations map[string]string) error {
	v, err := typeurl.MarshalAnyToProto(r)
	if err != nil {
		return fmt.Errorf("encode resources of %s: %w", id, err)
	}
	_, err = c.c.TaskService().Update(ctx, &tasks.UpdateTaskRequest{ContainerID: id, Resources: v, Annotations: annotations})
	if err != nil {
		return fmt.Errorf("update task %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// Task returns one task's state.
func (c *Client) Task(ctx context.Context, id string) (TaskState, error) {
	resp, err := c.c.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	if err != nil {
		return TaskState{}, fmt.Errorf("look up task %s: %w", id, errgrpc.ToNative(err))
	}
	return taskState(resp.Process), nil
}

// Tasks returns all tasks' states by container id.
func (c *Client) Tasks(ctx context.Context) (map[string]TaskState, error) {
	resp, err := c.c.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	out := make(map[string]TaskState, len(resp.Tasks))
	for _, p := range resp.Tasks {
		s := taskState(p)
		out[s.ContainerID] = s
	}
	return out, nil
}

func taskState(p *task.Process) TaskState {
	s := TaskState{
		ContainerID: p.ContainerID, PID: p.Pid, Status: p.Status,
		Streams: Streams{Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Terminal: p.Terminal},
	}
	if s.ContainerID == "" {
		s.ContainerID = p.ID
	}
	if p.Status == task.Status_STOPPED {
		s.Exit = Exit{PID: p.Pid, Code: p.ExitStatus, At: p.ExitedAt.AsTime()}
	}
	return s
}
