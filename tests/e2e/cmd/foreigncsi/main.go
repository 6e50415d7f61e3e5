// SPDX-License-Identifier: Apache-2.0

// Command foreigncsi is another vendor's storage driver for tests: Kubernetes' own mock
// driver, which answers but mounts nothing, with a memory file system mounted at each
// published target, and with the registration that a sidecar would do. It runs in a
// privileged pod, as drivers do, so that its mounts have to travel out of the pod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/driver"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/mock/service"
)

func main() {
	name := flag.String("name", "mock.csi.k8s.io", "the driver's name")
	kubelet := flag.String("kubelet", "/var/lib/kubelet", "the kubelet's directory")
	flag.Parse()
	if err := run(*name, *kubelet); err != nil {
		fmt.Fprintln(os.Stderr, "foreigncsi:", err)
		os.Exit(1)
	}
}

func run(name, kubelet string) error {
	mock := service.New(service.Config{DriverName: name, DisableAttach: true, PermissiveTargetPath: true})
	d := driver.NewCSIDriver(&driver.CSIDriverServers{Controller: mock, Identity: mock, Node: &node{NodeServer: mock}})
	endpoint := filepath.Join(kubelet, "plugins", name, "csi.sock")
	l, err := listen(endpoint)
	if err != nil {
		return err
	}
	// Its own interceptor wants a test's logger.
	plain := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		return handle(ctx, req)
	}
	if err := d.Start(l, plain); err != nil {
		return err
	}
	l, err = listen(filepath.Join(kubelet, "plugins_registry", name+"-reg.sock"))
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	registration.RegisterRegistrationServer(s, &registrar{name: name, endpoint: endpoint})
	return s.Serve(l)
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
}

// registrar tells the kubelet where the driver is.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

// GetInfo names the driver.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus hears what the kubelet made of it.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.GetPluginRegistered() {
		fmt.Fprintln(os.Stderr, "foreigncsi: not registered:", s.GetError())
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// node mounts what the mock only says that it does.
type node struct{ csi.NodeServer }

// NodePublishVolume mounts a memory file system with one file at the target.
func (n *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	resp := &csi.NodePublishVolumeResponse{}
	if !inline(req.GetVolumeId()) {
		var err error
		if resp, err = n.NodeServer.NodePublishVolume(ctx, req); err != nil {
			return nil, err
		}
	}
	target := req.GetTargetPath()
	if mounted(target) {
		return resp, nil
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("foreign", target, "tmpfs", 0, "size=1m"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", target, err)
	}
	return resp, os.WriteFile(filepath.Join(target, "volume"), []byte(req.GetVolumeId()+"\n"), 0o644)
}

// NodeUnpublishVolume takes it away.
func (n *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if target := req.GetTargetPath(); mounted(target) {
		if err := unix.Unmount(target, 0); err != nil {
			return nil, fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if inline(req.GetVolumeId()) {
		return &csi.NodeUnpublishVolumeResponse{}, os.RemoveAll(req.GetTargetPath())
	}
	return n.NodeServer.NodeUnpublishVolume(ctx, req)
}

// inline tells volumes that the kubelet names itself: the mock of Kubernetes 1.37 looks for
// them in its list and falls over their absence.
func inline(id string) bool { return strings.HasPrefix(id, "csi-") }

func mounted(path string) bool {
	var here, above unix.Stat_t
	return unix.Stat(path, &here) == nil && unix.Stat(filepath.Dir(path), &above) == nil && here.Dev != above.Dev
}
