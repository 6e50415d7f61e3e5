// SPDX-License-Identifier: Apache-2.0

package csi_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/nodeagent/nodeagent/csi"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
	"github.com/nodeagent/nodeagent/csi/volume"
)

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func filePool(t *testing.T) volume.PoolConfig {
	t.Helper()
	return volume.PoolConfig{Name: "p", Path: mounttest.FileSystem(t, "", 0), Backend: volume.BackendFile}
}

func mountCap(mode csipb.VolumeCapability_AccessMode_Mode) *csipb.VolumeCapability {
	return &csipb.VolumeCapability{
		AccessType: &csipb.VolumeCapability_Mount{Mount: &csipb.VolumeCapability_MountVolume{}},
		AccessMode: &csipb.VolumeCapability_AccessMode{Mode: mode},
	}
}

const writer = csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

func TestRootRegistration(t *testing.T) {
	mounttest.Root(t)
	cfg := startServer(t, filePool(t))
	st, err := os.Stat(cfg.Socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", st.Mode(), err)
	}
	c := registerapi.NewRegistrationClient(dial(t, cfg.RegistrationSocket))
	info, err := c.GetInfo(t.Context(), &registerapi.InfoRequest{})
	if err != nil || info.GetType() != "CSIPlugin" || info.GetName() != csi.DriverName || info.GetEndpoint() != cfg.Socket || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("info %v, %v", info, err)
	}
	for _, ok := range []bool{false, true} {
		if _, err := c.NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{PluginRegistered: ok, Error: "no"}); err != nil {
			t.Error(err)
		}
	}
	names, err := os.ReadDir(filepath.Dir(cfg.Socket))
	if err != nil || len(names) != 2 {
		t.Errorf("beside the sockets: %v, %v", names, err)
	}
}

func TestRootSnapshotTopology(t *testing.T) {
	mounttest.Root(t)
	cfg := startServer(t, filePool(t))
	conn := dial(t, cfg.Socket)
	c := csipb.NewControllerClient(conn)
	info, err := csipb.NewNodeClient(conn).NodeGetInfo(t.Context(), &csipb.NodeGetInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	here := &csipb.TopologyRequirement{Requisite: []*csipb.Topology{info.GetAccessibleTopology()}}
	there := &csipb.TopologyRequirement{Requisite: []*csipb.Topology{{Segments: map[string]string{cfg.TopologyKey(): "node-b"}}}}
	req := &csipb.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csipb.VolumeCapability{mountCap(writer)}, CapacityRange: &csipb.CapacityRange{RequiredBytes: 32 << 20}, AccessibilityRequirements: there}
	if _, err := c.CreateVolume(t.Context(), req); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a volume for another node: %v", err)
	}
	req.AccessibilityRequirements = here
	v, err := c.CreateVolume(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.CreateSnapshot(t.Context(), &csipb.CreateSnapshotRequest{Name: "s", SourceVolumeId: v.GetVolume().GetVolumeId(), AccessibilityRequirements: here})
	if err != nil || len(s.GetSnapshot().GetAccessibleTopology()) != 1 || !proto.Equal(s.GetSnapshot().GetAccessibleTopology()[0], info.GetAccessibleTopology()) {
		t.Errorf("snapshot %v, %v", s, err)
	}
	far, err := c.GetCapacity(t.Context(), &csipb.GetCapacityRequest{AccessibleTopology: there.GetRequisite()[0]})
	if err != nil || far.GetAvailableCapacity() != 0 {
		t.Errorf("capacity elsewhere: %v, %v", far, err)
	}
}

// notebook keeps what is logged.
type notebook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (n *notebook) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.text.Write(p)
}

func TestRootSecretsAreNotLogged(t *testing.T) {
	mounttest.Root(t)
	dir := t.TempDir()
	run, err := os.MkdirTemp("/tmp", "na") //nolint:usetesting // socket paths have to be short
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(run) }()
	cfg := csi.Default()
	cfg.NodeName, cfg.StateDir, cfg.Pools = "n", filepath.Join(dir, "state"), []volume.PoolConfig{filePool(t)}
	cfg.Socket, cfg.RegistrationSocket = filepath.Join(run, "csi.sock"), ""
	db, err := bbolt.Open(filepath.Join(dir, "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var log notebook
	reg := prometheus.NewRegistry()
	s, err := csi.New(cfg, csi.Deps{
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), DB: db, Metrics: reg,
		Checkpoint: func(_, step string) error {
			if step == "mount" {
				panic("injected fault")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, cfg.Socket)
	secret := map[string]string{"key": "hunter2"}
	vc := mountCap(writer)
	vc.GetMount().MountFlags = []string{"noatime", "password=hunter2"}
	v, err := csipb.NewControllerClient(conn).CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "v", VolumeCapabilities: []*csipb.VolumeCapability{vc}, CapacityRange: &csipb.CapacityRange{RequiredBytes: 32 << 20}, Secrets: secret})
	if err != nil {
		t.Fatal(err)
	}
	n := csipb.NewNodeClient(conn)
	_, err = n.NodeStageVolume(ctx, &csipb.NodeStageVolumeRequest{VolumeId: v.GetVolume().GetVolumeId(), StagingTargetPath: dir, VolumeCapability: vc, Secrets: secret, VolumeContext: secret})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "injected fault") {
		t.Errorf("a fault in a call: %v", err)
	}
	if text := log.text.String(); strings.Contains(text, "hunter2") || !strings.Contains(text, "NodeStageVolume") {
		t.Errorf("log:\n%s", text)
	}
	families, err := reg.Gather()
	if err != nil || len(families) < 4 {
		t.Errorf("metrics: %d families, %v", len(families), err)
	}
	// The fault left the volume attached; taking it away works as after a crash.
	if _, err := n.NodeUnstageVolume(ctx, &csipb.NodeUnstageVolumeRequest{VolumeId: v.GetVolume().GetVolumeId(), StagingTargetPath: dir}); err != nil {
		t.Error(err)
	}
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestRootBadCalls(t *testing.T) {
	mounttest.Root(t)
	cfg := startServer(t, filePool(t))
	conn := dial(t, cfg.Socket)
	c, n, g := csipb.NewControllerClient(conn), csipb.NewNodeClient(conn), csipb.NewGroupControllerClient(conn)
	ctx := t.Context()
	one := []*csipb.VolumeCapability{mountCap(writer)}
	for name, tc := range map[string]struct {
		err  error
		want codes.Code
	}{
		"no access type":    {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: []*csipb.VolumeCapability{{}}})), codes.InvalidArgument},
		"unknown mode":      {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: []*csipb.VolumeCapability{mountCap(99)}})), codes.InvalidArgument},
		"long name":         {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: strings.Repeat("x", 129), VolumeCapabilities: one})), codes.InvalidArgument},
		"control character": {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "a\x00b", VolumeCapabilities: one})), codes.InvalidArgument},
		"negative size":     {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: one, CapacityRange: &csipb.CapacityRange{RequiredBytes: -1}})), codes.OutOfRange},
		"beyond the pool":   {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: one, CapacityRange: &csipb.CapacityRange{RequiredBytes: 1 << 50}})), codes.ResourceExhausted},
		"empty source":      {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: one, VolumeContentSource: &csipb.VolumeContentSource{}})), codes.InvalidArgument},
		"another's pool":    {second(c.CreateVolume(ctx, &csipb.CreateVolumeRequest{Name: "x", VolumeCapabilities: one, Parameters: map[string]string{"pool": "nvme"}})), codes.ResourceExhausted},
		"bad token":         {second(c.ListVolumes(ctx, &csipb.ListVolumesRequest{StartingToken: "1"})), codes.Aborted},
		"negative page":     {second(c.ListSnapshots(ctx, &csipb.ListSnapshotsRequest{MaxEntries: -1})), codes.InvalidArgument},
		"publish":           {second(c.ControllerPublishVolume(ctx, &csipb.ControllerPublishVolumeRequest{VolumeId: "x", NodeId: "y", VolumeCapability: one[0]})), codes.Unimplemented},
		"group of nothing":  {second(g.CreateVolumeGroupSnapshot(ctx, &csipb.CreateVolumeGroupSnapshotRequest{Name: "x"})), codes.InvalidArgument},
		"group of none":     {second(g.CreateVolumeGroupSnapshot(ctx, &csipb.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{"none"}})), codes.NotFound},
		"stage unknown":     {second(n.NodeStageVolume(ctx, &csipb.NodeStageVolumeRequest{VolumeId: "../x", StagingTargetPath: "/tmp", VolumeCapability: one[0]})), codes.NotFound},
		"health of none":    {second(n.NodeGetVolumeHealth(ctx, &csipb.NodeGetVolumeHealthRequest{VolumeId: "x"})), codes.NotFound},
	} {
		if status.Code(tc.err) != tc.want {
			t.Errorf("%s: %v, want %s", name, tc.err, tc.want)
		}
	}
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = fmt.Fprint(raw, "GET / HTTP/1.1\r\n\r\n\x00\xff garbage")
	_, _ = raw.Read(make([]byte, 1))
	_ = raw.Close()
	list, err := c.ListVolumes(ctx, &csipb.ListVolumesRequest{})
	if err != nil || len(list.GetEntries()) != 0 {
		t.Errorf("after all this: %v, %v", list, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestConfigFaults(t *testing.T) {
	good := csi.Default()
	if err := good.Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	bad := csi.Config{
		DriverName: "9lives", Socket: "relative", RegistrationSocket: "/x", MaxVolumes: -1, StateDir: "x", CgroupRoot: "/",
		Pools: []volume.PoolConfig{
			{Name: "A", Path: "x", Backend: "floppy", Reserve: "200%", Limit: "much", Overcommit: -1},
			{Name: "b", Path: "/p", Backend: "file", Devices: []string{"/dev/sda"}},
			{Name: "b", Path: "/p/q", Backend: "lvm"},
		},
		Classes: []volume.ClassConfig{{Name: "c", Parameters: map[string]string{"pool": "none"}}, {Name: "c", Parameters: map[string]string{"colour": "red"}}},
	}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"driverName: ", "socket: ", "registrationSocket: ", "maxVolumes: ", "stateDir: ", "pools[0].name: ", "pools[0].path: ", "pools[0].backend: ",
		"pools[0].reserve: ", "pools[0].limit: ", "pools[0].overcommit: ", "pools[1].devices: ", "pools[2].name: ", "pools[2].path: ",
		"pools[2].volumeGroup: ", "classes[0].parameters.pool: ", "classes[1].name: ", "classes[1].parameters: ",
	} {
		if !strings.Contains("\n"+err.Error(), "\n"+want) {
			t.Errorf("no fault begins with %q in\n%v", want, err)
		}
	}
	if _, err := csi.New(good, csi.Deps{}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("no node name: %v", err)
	}
}
