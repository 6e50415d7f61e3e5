// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// TestRequests reads what containerd's generated types write.
func TestRequests(t *testing.T) {
	packed := &anypb.Any{TypeUrl: "t", Value: []byte("v")}
	wanted := wire.Any{Type: "t", Value: []byte("v")}
	for method, tt := range map[string]struct {
		in   proto.Message
		want request
	}{
		"Create": {&taskapi.CreateTaskRequest{
			ID: "c", Bundle: "/b", Rootfs: []*types.Mount{{Type: "overlay", Source: "o", Target: "x", Options: []string{"a", "b"}}},
			Terminal: true, Stdin: "i", Stdout: "o", Stderr: "e", Checkpoint: "/cp", ParentCheckpoint: "no", Options: packed,
		}, request{
			ID: "c", Bundle: "/b", Rootfs: []oci.Mount{{Type: "overlay", Source: "o", Target: "x", Options: []string{"a", "b"}}},
			Terminal: true, In: "i", Out: "o", Err: "e", Checkpoint: "/cp", Any: wanted,
		}},
		"Exec": {
			&taskapi.ExecProcessRequest{ID: "c", ExecID: "x", Terminal: true, Stdin: "i", Stdout: "o", Stderr: "e", Spec: packed},
			request{ID: "c", ExecID: "x", Terminal: true, In: "i", Out: "o", Err: "e", Any: wanted},
		},
		"Start":      {&taskapi.StartRequest{ID: "c", ExecID: "x"}, request{ID: "c", ExecID: "x"}},
		"Delete":     {&taskapi.DeleteRequest{ID: "c", ExecID: "x"}, request{ID: "c", ExecID: "x"}},
		"State":      {&taskapi.StateRequest{ID: "c", ExecID: "x"}, request{ID: "c", ExecID: "x"}},
		"Wait":       {&taskapi.WaitRequest{ID: "c", ExecID: "x"}, request{ID: "c", ExecID: "x"}},
		"Kill":       {&taskapi.KillRequest{ID: "c", ExecID: "x", Signal: 9, All: true}, request{ID: "c", ExecID: "x", Signal: 9, All: true}},
		"ResizePty":  {&taskapi.ResizePtyRequest{ID: "c", ExecID: "x", Width: 80, Height: 25}, request{ID: "c", ExecID: "x", Width: 80, Height: 25}},
		"CloseIO":    {&taskapi.CloseIORequest{ID: "c", ExecID: "x", Stdin: true}, request{ID: "c", ExecID: "x", Stdin: true}},
		"Update":     {&taskapi.UpdateTaskRequest{ID: "c", Resources: packed, Annotations: map[string]string{"a": "b"}}, request{ID: "c", Any: wanted}},
		"Checkpoint": {&taskapi.CheckpointTaskRequest{ID: "c", Path: "/p", Options: packed}, request{ID: "c", Path: "/p", Any: wanted}},
	} {
		raw, err := proto.Marshal(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readRequest(method, raw)
		if err != nil || !reflect.DeepEqual(*got, tt.want) {
			t.Errorf("%s: got %+v, %v, want %+v", method, got, err, tt.want)
		}
	}
}

// TestOptions reads the options of the runc family.
func TestOptions(t *testing.T) {
	raw, err := proto.Marshal(&options.Options{
		NoPivotRoot: true, NoNewKeyring: true, ShimCgroup: "x", IoUid: 1, BinaryName: "crun", Root: "/r", SystemdCgroup: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := RuntimeOf(wire.Any{Type: "containerd.runc.v1.Options", Value: raw})
	if want := (oci.Runtime{Binary: "crun", Root: "/r", Systemd: true, NoPivot: true, NoKeyring: true}); err != nil || *got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	raw, err = proto.Marshal(&options.CheckpointOptions{
		Exit: true, OpenTcp: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"net"},
		CgroupsMode: "soft", ImagePath: "/i", WorkPath: "/w", ParentPath: "/p",
	})
	if err != nil {
		t.Fatal(err)
	}
	dump, err := readCheckpoint(wire.Any{Value: raw})
	want := oci.Checkpoint{
		WorkPath: "/w", ParentPath: "/p", CgroupsMode: "soft",
		Exit: true, OpenTCP: true, UnixSockets: true, Terminal: true, FileLocks: true, EmptyNamespaces: []string{"net"},
	}
	if err != nil || !reflect.DeepEqual(dump, want) {
		t.Errorf("got %+v, %v", dump, err)
	}
}

// TestEvents has containerd's generated types read what we write.
func TestEvents(t *testing.T) {
	at := time.Unix(1700000000, 7).UTC()
	exit := reap.Exit{Status: 137, At: at}
	stamp := timestamppb.New(at)
	r := &request{ID: "c", Bundle: "/b", In: "i", Out: "o", Err: "e", Terminal: true, Checkpoint: "/p"}
	for _, tt := range []struct {
		got   Event
		topic string
		want  proto.Message
	}{
		{created(r, 5), "/tasks/create", &eventtypes.TaskCreate{
			ContainerID: "c", Bundle: "/b", Checkpoint: "/p", Pid: 5, IO: &eventtypes.TaskIO{Stdin: "i", Stdout: "o", Stderr: "e", Terminal: true},
		}},
		{started("c", "", 5), "/tasks/start", &eventtypes.TaskStart{ContainerID: "c", Pid: 5}},
		{started("c", "x", 5), "/tasks/exec-started", &eventtypes.TaskExecStarted{ContainerID: "c", ExecID: "x", Pid: 5}},
		{execAdded("c", "x"), "/tasks/exec-added", &eventtypes.TaskExecAdded{ContainerID: "c", ExecID: "x"}},
		{exited("c", "", 5, exit), "/tasks/exit", &eventtypes.TaskExit{ContainerID: "c", ID: "c", Pid: 5, ExitStatus: 137, ExitedAt: stamp}},
		{exited("c", "x", 5, exit), "/tasks/exit", &eventtypes.TaskExit{ContainerID: "c", ID: "x", Pid: 5, ExitStatus: 137, ExitedAt: stamp}},
		{deleted("c", 5, exit), "/tasks/delete", &eventtypes.TaskDelete{ContainerID: "c", Pid: 5, ExitStatus: 137, ExitedAt: stamp}},
		{oom("c"), "/tasks/oom", &eventtypes.TaskOOM{ContainerID: "c"}},
		{paused("c"), "/tasks/paused", &eventtypes.TaskPaused{ContainerID: "c"}},
		{resumed("c"), "/tasks/resumed", &eventtypes.TaskResumed{ContainerID: "c"}},
		{checkpointed("c", "/p"), "/tasks/checkpointed", &eventtypes.TaskCheckpointed{ContainerID: "c", Checkpoint: "/p"}},
	} {
		got, err := anypb.UnmarshalNew(&anypb.Any{TypeUrl: tt.got.Value.Type, Value: tt.got.Value.Value}, proto.UnmarshalOptions{})
		if err != nil || !proto.Equal(got, tt.want) || tt.got.Topic != tt.topic {
			t.Errorf("%s: got %v, %v, want %v", tt.got.Topic, got, err, tt.want)
		}
	}
}

// FuzzReadRequest feeds any bytes to all methods.
func FuzzReadRequest(f *testing.F) {
	f.Add([]byte{10, 1, 'c', 26, 2, 10, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, method := range []string{"Create", "Exec", "Update", "Checkpoint", "Kill"} {
			if r, err := readRequest(method, body); err == nil && r == nil {
				t.Fatal(fmt.Sprint(method, ": neither request nor error"))
			}
		}
	})
}
