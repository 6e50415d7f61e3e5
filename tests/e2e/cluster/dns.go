// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed" // the manifests
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

//go:embed dns.yaml
var dnsManifests string

const (
	dnsImage      = "registry.k8s.io/coredns/coredns:cluster"
	dnsNamespace  = "kube-system"
	dnsDeployment = "coredns"
)

// applyDNS deploys CoreDNS before there is a node for it: nothing waits for it meanwhile.
func (c *Cluster) applyDNS(ctx context.Context) error {
	return c.Apply(ctx, strings.ReplaceAll(dnsManifests, "CLUSTER_DNS", clusterDNS))
}

// waitDNS waits until names can be asked for.
func (c *Cluster) waitDNS(ctx context.Context) error {
	return waitFor(deadline(ctx, c, 2*time.Minute), func(ctx context.Context) error {
		d, err := c.Client.AppsV1().Deployments(dnsNamespace).Get(ctx, dnsDeployment, metav1.GetOptions{})
		if err == nil && d.Status.AvailableReplicas < 1 {
			err = fmt.Errorf("%d of %d replicas are available", d.Status.AvailableReplicas, d.Status.Replicas)
		}
		return err
	}, c.nodePrograms()...)
}

// RemoveDNS takes the cluster's own pods away, so that its nodes can be Quiet. Without
// any it is no error.
func (c *Cluster) RemoveDNS(ctx context.Context) error {
	_, err := c.Kubectl(ctx, "-n", dnsNamespace, "delete", "deployment", dnsDeployment, "--ignore-not-found", "--cascade=foreground", "--timeout=60s")
	return err
}
