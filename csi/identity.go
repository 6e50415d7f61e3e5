// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type identity struct {
	csipb.UnimplementedIdentityServer
	*Server
}

var _ csipb.IdentityServer = (*identity)(nil)

// GetPluginInfo names the driver.
func (s *identity) GetPluginInfo(context.Context, *csipb.GetPluginInfoRequest) (*csipb.GetPluginInfoResponse, error) {
	return &csipb.GetPluginInfoResponse{Name: s.cfg.DriverName, VendorVersion: s.deps.Version}, nil
}

// GetPluginCapabilities lists the services. It is the same on every node of one
// version, whatever its pools can do.
func (s *identity) GetPluginCapabilities(context.Context, *csipb.GetPluginCapabilitiesRequest) (*csipb.GetPluginCapabilitiesResponse, error) {
	out := &csipb.GetPluginCapabilitiesResponse{}
	for _, t := range []csipb.PluginCapability_Service_Type{
		csipb.PluginCapability_Service_CONTROLLER_SERVICE,
		csipb.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
		csipb.PluginCapability_Service_GROUP_CONTROLLER_SERVICE,
		csipb.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE,
		csipb.PluginCapability_Service_SNAPSHOT_ACCESSIBILITY_CONSTRAINTS,
	} {
		out.Capabilities = append(out.Capabilities, &csipb.PluginCapability{
			Type: &csipb.PluginCapability_Service_{Service: &csipb.PluginCapability_Service{Type: t}},
		})
	}
	out.Capabilities = append(out.Capabilities, &csipb.PluginCapability{
		Type: &csipb.PluginCapability_VolumeExpansion_{VolumeExpansion: &csipb.PluginCapability_VolumeExpansion{
			Type: csipb.PluginCapability_VolumeExpansion_ONLINE,
		}},
	})
	return out, nil
}

// Probe is ready when recovery is over. A pool that is away does not make the
// driver unready: the other pools serve, and its health says so.
func (s *identity) Probe(context.Context, *csipb.ProbeRequest) (*csipb.ProbeResponse, error) {
	return &csipb.ProbeResponse{Ready: wrapperspb.Bool(s.volumes.Started())}, nil
}

// registration answers the kubelet's plugin watcher, in place of the
// node-driver-registrar.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	*Server
}

var _ registerapi.RegistrationServer = (*registration)(nil)

// GetInfo tells the kubelet where the CSI socket is.
func (s *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: s.cfg.DriverName, Endpoint: s.cfg.Socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus hears how it went. The kubelet tries again by itself.
func (s *registration) NotifyRegistrationStatus(ctx context.Context, st *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if st.GetPluginRegistered() {
		s.log.InfoContext(ctx, "registered with the kubelet", "driver", s.cfg.DriverName)
	} else {
		s.log.ErrorContext(ctx, "the kubelet refused the driver, it will try again", "driver", s.cfg.DriverName, "err", st.GetError())
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
