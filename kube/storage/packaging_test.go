// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
	"github.com/nodeagent/nodeagent/kube"
	"github.com/nodeagent/nodeagent/kube/kubetest"
	"github.com/nodeagent/nodeagent/packaging"
	"github.com/nodeagent/nodeagent/packaging/render"
)

// resources of the kinds in the chart, and whether they have a namespace.
var resources = map[string]struct {
	name       string
	namespaced bool
}{
	"ConfigMap": {"configmaps", true}, "ServiceAccount": {"serviceaccounts", true}, "DaemonSet": {"daemonsets", true},
	"ClusterRole": {"clusterroles", false}, "ClusterRoleBinding": {"clusterrolebindings", false},
	"Role": {"roles", true}, "RoleBinding": {"rolebindings", true},
	"CSIDriver": {"csidrivers", false}, "StorageClass": {"storageclasses", false},
	"ValidatingAdmissionPolicy":        {"validatingadmissionpolicies", false},
	"ValidatingAdmissionPolicyBinding": {"validatingadmissionpolicybindings", false},
}

// applyChart applies the chart at the server, each field strictly, and returns
// how many objects there were.
func (c *cluster) applyChart(release render.Release, values map[string]any, dryRun bool) int {
	c.t.Helper()
	path, err := c.server.Kubeconfig("chart", kubetest.AdminToken, "")
	c.must(err)
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	c.must(err)
	client, err := dynamic.NewForConfig(cfg)
	c.must(err)
	chart, err := packaging.Chart()
	c.must(err)
	data, err := render.Manifests(chart, release, values)
	c.must(err)
	opts := metav1.PatchOptions{FieldManager: "test", Force: new(true), FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	n := 0
	for dec := yaml.NewYAMLToJSONDecoder(bytes.NewReader(data)); ; n++ {
		var obj unstructured.Unstructured
		if err := dec.Decode(&obj); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			c.t.Fatal(err)
		}
		gvk := obj.GroupVersionKind()
		res, ok := resources[gvk.Kind]
		if !ok {
			c.t.Fatalf("kind %s is new to the test", gvk.Kind)
		}
		body, err := obj.MarshalJSON()
		c.must(err)
		api := client.Resource(schema.GroupVersionResource{Group: gvk.Group, Version: gvk.Version, Resource: res.name})
		var target dynamic.ResourceInterface = api
		if res.namespaced {
			target = api.Namespace(obj.GetNamespace())
		}
		if _, err := target.Patch(c.t.Context(), obj.GetName(), types.ApplyPatchType, body, opts); err != nil {
			c.t.Errorf("apply %s %s: %v\n%s", gvk.Kind, obj.GetName(), err, body)
		}
	}
}

// Every object of the chart is one that the API server takes, in both modes.
func TestChartIsValid(t *testing.T) {
	c := newCluster(t, wait)
	for name, values := range map[string]map[string]any{
		"host": {"mode": "host"},
		"pod": {
			"mode": "pod", "apiServer": map[string]any{"servers": []any{"192.0.2.1:6443"}},
			"config":           map[string]any{"log": map[string]any{"level": "debug"}},
			"imagePullSecrets": []any{map[string]any{"name": "secret"}},
			"podAnnotations":   map[string]any{"a": "b"}, "podLabels": map[string]any{"c": "d"},
		},
		"volumes only": {
			"network": map[string]any{"enabled": false}, "admissionPolicy": false,
			"storage": map[string]any{"snapshots": false, "classes": []any{
				map[string]any{"name": "fast", "default": true, "allowVolumeExpansion": false, "mountOptions": []any{"noatime"}},
			}},
		},
		"network only": {"storage": map[string]any{"enabled": false}},
	} {
		n := c.applyChart(render.Release{Name: "nodeagent", Namespace: "kube-system"}, values, true)
		t.Logf("%s: %d objects", name, n)
		if n < 4 {
			t.Errorf("%s: %d objects", name, n)
		}
	}
}

// sinks take everything and do nothing.
type sinks struct{}

func (sinks) SetNode(context.Context, dataplane.Node) error                { return nil }
func (sinks) UpdatePeers(context.Context, []dataplane.Peer) error          { return nil }
func (sinks) UpdateServices(context.Context, []service.Object) error       { return nil }
func (sinks) DeleteServices(context.Context, []types.NamespacedName) error { return nil }
func (sinks) PruneServices(context.Context, []types.NamespacedName) error  { return nil }
func (sinks) ReplacePolicyObjects(context.Context, policy.Objects) error   { return nil }
func (sinks) UpdatePolicyObjects(context.Context, policy.Objects, policy.Names) error {
	return nil
}

// agent is a client of the chart's service account, in a pod of a node.
func (c *cluster) agent(node string) (*kube.Client, kube.Config) {
	c.t.Helper()
	ctx := c.t.Context()
	pod, err := c.CoreV1().Pods(c.ns).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "agent-" + node},
		Spec: corev1.PodSpec{
			ServiceAccountName: "nodeagent", NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}},
		},
	}, metav1.CreateOptions{})
	c.must(err)
	token, err := c.CoreV1().ServiceAccounts(c.ns).CreateToken(ctx, "nodeagent", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{
			APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID,
		}},
	}, metav1.CreateOptions{})
	c.must(err)
	cfg := kube.Default()
	cfg.NodeName = node
	cfg.Kubeconfig, err = c.server.Kubeconfig("sa-"+node, token.Status.Token, "")
	c.must(err)
	client, err := kube.Connect(cfg, "test")
	c.must(err)
	return client, cfg
}

// The chart's service account may do all that the agent does.
func TestChartGivesTheRightsThatAreNeeded(t *testing.T) {
	c := newCluster(t, immediate)
	c.applyChart(render.Release{Name: "nodeagent", Namespace: c.ns}, map[string]any{
		"storage": map[string]any{"driver": c.driver, "classes": []any{}},
	}, false)
	client, kcfg := c.agent("me")
	c.awaitPolicies(client)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	w, err := kube.New(kcfg, kube.Deps{
		Log: log, Client: client, Node: sinks{}, Peers: sinks{}, Services: sinks{}, Policies: sinks{},
	})
	c.must(err)
	c.must(w.Start(t.Context()))
	defer func() { c.must(w.Stop(context.Background())) }()
	c.must(w.Synced(t.Context()))

	cfg := c.config()
	cfg.CSIDriver, cfg.TopologyKey, cfg.CapacityPeriod = true, "topology."+c.driver+"/node", time.Second
	s, err := New(cfg, Deps{Log: log, Node: "me", Client: client.Client, Volumes: c.fake, Snapshots: c.fake, Groups: c.fake})
	c.must(err)
	c.must(s.Start(t.Context()))
	defer func() { c.must(s.Stop(context.Background())) }()
	c.claim("mine", "1Gi", "")
	c.bound("mine")
	c.event("mine", "ProvisioningSucceeded")
	_, err = client.Claims(c.ns).Patch(t.Context(), "mine", types.MergePatchType, []byte(grow2))
	if err == nil || !strings.Contains(err.Error(), "may not change what a claim asks for") {
		t.Errorf("the agent asks for more: %v", err)
	}
	c.patchClaim(grow2)
	c.await("grown", func() bool { return c.resizeState() == corev1.PersistentVolumeClaimNodeResizePending })
	c.await("capacity published", func() bool {
		list, err := c.StorageV1().CSIStorageCapacities(metav1.NamespaceSystem).List(t.Context(),
			metav1.ListOptions{LabelSelector: labelDriver + "=" + c.driver})
		c.must(err)
		return len(list.Items) == 1
	})
	c.must(s.ensureDriverObject(t.Context()))
	c.snapshotsAsAgent(client)
	c.strangersAsAgent(client)
	c.deleteClaim("mine")
	c.await("volume deleted", func() bool { return len(c.mine()) == 0 && len(c.fake.ids()) == 0 })
	if faults := w.Status().Source.Faults; len(faults) > 0 {
		t.Errorf("watcher: %s", strings.Join(faults, "\n"))
	}
}

// awaitPolicies waits until the server enforces the chart's policies, and
// tries what they forbid.
func (c *cluster) awaitPolicies(client *kube.Client) {
	c.t.Helper()
	ctx, dry := c.t.Context(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	pv := func(driver, node string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "try"},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:               corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(gib, resource.BinarySI)},
				AccessModes:            []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "h"}},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{
						Key: "topology." + c.driver + "/node", Operator: corev1.NodeSelectorOpIn, Values: []string{node},
					}},
				}}}},
			},
		}
	}
	c.await("policies in force", func() bool {
		_, err := client.Volumes().Create(ctx, pv(c.driver, "other"), dry)
		return err != nil && strings.Contains(err.Error(), "an agent may change only volumes of its driver on its own node")
	})
	_, err := client.Volumes().Create(ctx, pv(c.driver, "me"), dry)
	c.must(err)
	if _, err := client.Volumes().Create(ctx, pv("foreign.dev", "me"), dry); err == nil {
		c.t.Error("a volume of another driver was let through")
	}
	c.claim("elsewhere", "1Gi", "other", func(p *corev1.PersistentVolumeClaim) { p.Annotations[annProvisioner] = c.driver })
	refused := func(what, patch string) bool {
		_, err := client.Claims(c.ns).Patch(ctx, "elsewhere", types.MergePatchType, []byte(patch))
		return err != nil && strings.Contains(err.Error(), what)
	}
	// Each policy comes into force by itself; this patch would do no harm.
	c.await("policy for claims in force", func() bool {
		return refused("an agent may change only claims", `{"metadata":{"annotations":{"a":"b"}}}`)
	})
	for _, node := range []string{`"me"`, "null"} {
		patch := `{"metadata":{"annotations":{"volume.kubernetes.io/selected-node":` + node + `}}}`
		if !refused("claims of its own node", patch) {
			c.t.Errorf("patch %s was let through", patch)
		}
	}
	c.await("policy for capacities in force", func() bool {
		_, err := client.Capacities(metav1.NamespaceSystem).Create(ctx, &storagev1.CSIStorageCapacity{
			ObjectMeta: metav1.ObjectMeta{Name: "try"}, StorageClassName: "x",
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{"topology." + c.driver + "/node": "other"}},
		}, dry)
		return err != nil && strings.Contains(err.Error(), "only its own node's capacity")
	})
}

// snapshotsAsAgent takes and deletes a snapshot and a group with the agent's rights, and
// tries what they do not give.
func (c *cluster) snapshotsAsAgent(client *kube.Client) {
	c.t.Helper()
	s := newSnapshots(c)
	handle := c.bound("mine").Spec.CSI.VolumeHandle
	source := snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle}
	s.content("other", "other", source)
	s.content("one", "", source)
	s.group("group", groupv1.VolumeGroupSnapshotContentSource{VolumeHandles: []string{handle}})
	c.await("snapshots", func() bool { return ready(s.get("one")) && groupReady(s.getGroup("group")) })
	c.await("snapshots of other nodes protected", func() bool {
		_, err := client.SnapshotContents().Patch(c.t.Context(), c.ns+"-other", types.MergePatchType, []byte(`{"metadata":{"annotations":{"a":"b"}}}`))
		return err != nil && strings.Contains(err.Error(), "only snapshots of its own node")
	})
	s.drop("one")
	s.dropGroup("group")
	c.await("snapshots gone", func() bool { return s.get("one") == nil && s.getGroup("group") == nil })
	// Its node, "other", is not there.
	s.drop("other")
	c.await("snapshot of a node that is gone let go", func() bool { return s.get("other") == nil })
}

// strangersAsAgent tries what the agent's rights give it of another node's volumes: to let
// go what is to be deleted anyway, and nothing else.
func (c *cluster) strangersAsAgent(client *kube.Client) {
	c.t.Helper()
	c.foreignVolume("elsewhere")
	name := c.ns + "-elsewhere"
	api, ctx := c.CoreV1().PersistentVolumes(), c.t.Context()
	refused := func(what, patch string) {
		c.t.Helper()
		if _, err := client.Volumes().Patch(ctx, name, types.MergePatchType, []byte(patch)); err == nil {
			c.t.Errorf("the agent may %s", what)
		}
	}
	_, err := api.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":["`+finalizerVolume+`"]},"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`), metav1.PatchOptions{})
	c.must(err)
	refused("let go what is not released", `{"metadata":{"finalizers":null}}`)
	if err := client.Volumes().Delete(ctx, name, metav1.DeleteOptions{}); err == nil {
		c.t.Error("the agent deletes a volume in use")
	}
	_, err = api.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"claimRef":{"namespace":"`+c.ns+`","name":"past","uid":"past"}}}`), metav1.PatchOptions{})
	c.must(err)
	_, err = api.Patch(ctx, name, types.MergePatchType, []byte(`{"status":{"phase":"Released"}}`), metav1.PatchOptions{}, "status")
	c.must(err)
	refused("mark it", `{"metadata":{"annotations":{"a":"b"}}}`)
	refused("keep it", `{"metadata":{"finalizers":["a/b"]}}`)
	refused("change it", `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	// What the agent itself does when the node is gone, as this one is.
	c.await("volume of a node that is gone let go", func() bool {
		_, err := api.Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}
