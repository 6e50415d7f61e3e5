// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Names and versions by which the kubelet knows the runtime. Container ids in
// the API begin with the name, so it never changes.
const (
	runtimeName       = "nodeagent"
	kubeletAPIVersion = "0.1.0"
	criVersion        = "v1"
)

// checkTimeout bounds the question whether containerd answers.
const checkTimeout = 2 * time.Second

// Version names the runtime.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.deps.Version, RuntimeApiVersion: criVersion,
	}, nil
}

// Status tells whether containers and pods' networks can be made, and what the
// handlers can do.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	userNamespaces := s.host.NoUserNamespaces == nil
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			condition(runtimeapi.RuntimeReady, "ContainerdNotReady", s.checkContainerd(ctx)),
			condition(runtimeapi.NetworkReady, "NetworkPluginNotReady", s.sandboxes.NetworkStatus(ctx)),
		}},
		RuntimeHandlers: s.handlers.cri(userNamespaces),
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: userNamespaces, MountOptions: true,
		},
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	cfg, err := json.Marshal(map[string]any{
		"socket": s.cfg.Socket, "cgroupDriver": s.cfg.CgroupDriver, "defaultHandler": s.cfg.DefaultHandler,
		"handlers": s.handlers.now.Load().cfg.Handlers, "stateDir": s.cfg.Sandbox.StateDir, "rootDir": s.cfg.Container.RootDir,
	})
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	resp.Info = map[string]string{"config": string(cfg)}
	return resp, nil
}

func (s *Server) checkContainerd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	return s.deps.Containerd.Check(ctx)
}

func condition(typ, reason string, err error) *runtimeapi.RuntimeCondition {
	if err == nil {
		return &runtimeapi.RuntimeCondition{Type: typ, Status: true}
	}
	return &runtimeapi.RuntimeCondition{Type: typ, Reason: reason, Message: err.Error()}
}

// RuntimeConfig tells the kubelet which cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cfg.CgroupDriver == CgroupDriverSystemd {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig hands the node's pod ranges to the network.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	text := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	var cidrs []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("network_config.pod_cidr: %q is no CIDR: %w", part, errdefs.ErrInvalidArgument)
		}
		cidrs = append(cidrs, p)
	}
	if err := s.deps.Network.SetPodCIDRs(ctx, cidrs); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}
