// SPDX-License-Identifier: Apache-2.0

// Package apiclient is how the agent speaks with an API server: a typed client
// for the kinds that it works with and for no others. client-go's clientset
// links every group of the API with its defaults, listers and apply
// configurations, which is several times the agent itself.
//
// A kind more is a line in kinds.go and, if its group is new, one in scheme.go.
package apiclient

import (
	"context"
	"fmt"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

const protobuf = "application/vnd.kubernetes.protobuf"

// Client speaks with one API server. All groups share one connection and one
// rate limit. Built-in kinds come as protobuf, those of CRDs as JSON.
type Client struct {
	core, discovery, networking, storage, snapshot, group rest.Interface

	scheme *runtime.Scheme
}

// New makes a client for the server that rc names; it does not speak with it.
func New(rc *rest.Config) (*Client, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	shared := rest.CopyConfig(rc)
	if shared.RateLimiter == nil && shared.QPS > 0 {
		shared.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(shared.QPS, shared.Burst)
	}
	shared.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	hc, err := rest.HTTPClientFor(shared)
	if err != nil {
		return nil, fmt.Errorf("make connection to %s: %w", rc.Host, err)
	}
	c := &Client{scheme: scheme}
	for _, g := range []struct {
		rest    *rest.Interface
		version schema.GroupVersion
		content string
	}{
		{&c.core, corev1.SchemeGroupVersion, protobuf},
		{&c.discovery, discoveryv1.SchemeGroupVersion, protobuf},
		{&c.networking, networkingv1.SchemeGroupVersion, protobuf},
		{&c.storage, storagev1.SchemeGroupVersion, protobuf},
		{&c.snapshot, snapshotv1.SchemeGroupVersion, runtime.ContentTypeJSON},
		{&c.group, groupv1.SchemeGroupVersion, runtime.ContentTypeJSON},
	} {
		one := rest.CopyConfig(shared)
		one.GroupVersion, one.APIPath, one.ContentType = &g.version, "/apis", g.content
		if g.version.Group == corev1.GroupName {
			one.APIPath = "/api"
		}
		if g.content == protobuf {
			one.AcceptContentTypes = protobuf + "," + runtime.ContentTypeJSON
		}
		if *g.rest, err = rest.RESTClientForConfigAndClient(one, hc); err != nil {
			return nil, fmt.Errorf("make client for %s: %w", g.version, err)
		}
	}
	return c, nil
}

// HasResource reports whether the server knows a resource of a group: CRDs may
// come late or never.
func (c *Client) HasResource(ctx context.Context, group schema.GroupVersion, resource string) (bool, error) {
	var list metav1.APIResourceList
	err := c.core.Get().AbsPath("/apis", group.Group, group.Version).Do(ctx).Into(&list)
	if err != nil {
		return false, fmt.Errorf("ask for resources of %s: %w", group, err)
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}
