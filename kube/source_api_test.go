// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/nodeagent/nodeagent/kube/kubetest"
)

// cluster is the API server of a test, with a namespace of its own.
type cluster struct {
	t      *testing.T
	server *kubetest.Server
	kubernetes.Interface
	ns string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	server, client := shared.Get(t)
	c := &cluster{t: t, server: server, Interface: client, ns: strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))}
	_, err := client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.ns}}, metav1.CreateOptions{})
	c.must(err)
	t.Cleanup(c.clean)
	return c
}

// clean removes what the test made: the server is shared.
func (c *cluster) clean() {
	ctx, all := context.Background(), metav1.ListOptions{}
	svcs, err := c.CoreV1().Services(c.ns).List(ctx, all)
	c.must(err)
	for _, s := range svcs.Items {
		c.must(c.CoreV1().Services(c.ns).Delete(ctx, s.Name, metav1.DeleteOptions{}))
	}
	c.must(c.DiscoveryV1().EndpointSlices(c.ns).DeleteCollection(ctx, metav1.DeleteOptions{}, all))
	c.must(c.CoreV1().Nodes().DeleteCollection(ctx, metav1.DeleteOptions{}, all))
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) config() Config {
	c.t.Helper()
	path, err := c.server.Kubeconfig("agent", kubetest.AdminToken, "")
	c.must(err)
	cfg := Default()
	cfg.NodeName, cfg.Kubeconfig = "me", path
	return cfg
}

func (c *cluster) watch(cfg Config, r *record) *Watcher {
	c.t.Helper()
	client, err := Connect(cfg, "test")
	c.must(err)
	deps := r.deps(c.t)
	deps.Client = client
	return startWatcher(c.t, cfg, deps)
}

func (c *cluster) node(name, addr, cidr string) *corev1.Node {
	c.t.Helper()
	n, err := c.CoreV1().Nodes().Create(c.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{LabelZone: "z1"}},
		Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
	}, metav1.CreateOptions{})
	c.must(err)
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}
	n, err = c.CoreV1().Nodes().UpdateStatus(c.t.Context(), n, metav1.UpdateOptions{})
	c.must(err)
	return n
}

func (c *cluster) service(name string) {
	c.t.Helper()
	_, err := c.CoreV1().Services(c.ns).Create(c.t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	c.must(err)
}

func (c *cluster) slice(service, addr string) {
	c.t.Helper()
	port, name := int32(8080), ""
	_, err := c.DiscoveryV1().EndpointSlices(c.ns).Create(c.t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: service + "-",
			Labels:       map[string]string{discoveryv1.LabelServiceName: service},
			Annotations:  map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{})
	c.must(err)
}

// own are the services of the test's namespace that the record has.
func (c *cluster) own(r *record) string {
	var names []string
	for n := range r.services {
		if n.Namespace == c.ns || n.Namespace == "old" {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestAPIServerFollowed(t *testing.T) {
	c := newCluster(t)
	c.node("me", "192.0.2.1", "10.1.0.0/24")
	c.node("other", "192.0.2.2", "10.1.1.0/24")
	c.service("web")
	c.slice("web", "10.1.0.5")
	_, err := c.CoreV1().Services(c.ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "headless"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone},
	}, metav1.CreateOptions{})
	c.must(err)

	r := newRecord("old/gone")
	reg := prometheus.NewRegistry()
	cfg := c.config()
	client, err := Connect(cfg, "test")
	c.must(err)
	deps := r.deps(t)
	deps.Client, deps.Metrics = client, reg
	w := startWatcher(t, cfg, deps)
	c.must(w.Synced(t.Context()))
	r.await(t, "complete state", func(r *record) bool {
		o := r.services[nameOf(c.ns+"/web")]
		return c.own(r) == "web" && len(o.Slices) == 1 && r.node.Zone == "z1" && len(r.peers) == 1 && len(r.cidrs) == 1
	})

	c.service("db")
	r.await(t, "a new service", func(r *record) bool { return c.own(r) == "db web" })
	c.slice("web", "10.1.1.5")
	r.await(t, "a second slice", func(r *record) bool { return len(r.services[nameOf(c.ns+"/web")].Slices) == 2 })
	c.must(c.CoreV1().Services(c.ns).Delete(t.Context(), "web", metav1.DeleteOptions{}))
	r.await(t, "a deleted service", func(r *record) bool { return c.own(r) == "db" })
	c.must(c.CoreV1().Nodes().Delete(t.Context(), "other", metav1.DeleteOptions{}))
	r.await(t, "a node that left", func(r *record) bool { return len(r.peers) == 0 })

	_, err = c.NetworkingV1().NetworkPolicies(c.ns).Create(t.Context(),
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "deny"}}, metav1.CreateOptions{})
	c.must(err)
	_, err = c.CoreV1().Pods(c.ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}, metav1.CreateOptions{})
	c.must(err)
	r.await(t, "policy objects", func(r *record) bool {
		return r.policies["policy "+c.ns+"/deny"] && r.policies["pod "+c.ns+"/p"] && r.policies["namespace "+c.ns]
	})
	if n := sampleCount(t, reg, "kubeproxy_network_programming_duration_seconds"); n == 0 {
		t.Error("network programming latency was not observed")
	}
}

func sampleCount(t *testing.T, reg *prometheus.Registry, name string) uint64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	return 0
}

// An API server that disappears changes nothing; when it comes back, what
// changed meanwhile follows.
func TestAPIServerDisappears(t *testing.T) {
	c := newCluster(t)
	c.node("me", "192.0.2.1", "10.1.0.0/24")
	c.service("web")
	r := newRecord()
	w := c.watch(c.config(), r)
	c.must(w.Synced(t.Context()))
	calls := len(r.calls)
	c.must(c.server.StopAPI())
	awaitStatus(t, w, func(s Status) bool { return len(s.Source.Faults) == len(s.Source.Kinds) })
	r.mu.Lock()
	if len(r.calls) != calls || c.own(r) != "web" {
		t.Errorf("sinks were called while the server was away: %q", r.calls[calls:])
	}
	r.mu.Unlock()
	c.must(c.server.StartAPI(t.Context()))
	c.service("db")
	r.await(t, "what came after", func(r *record) bool { return c.own(r) == "db web" })
	awaitStatus(t, w, func(s Status) bool { return len(s.Source.Faults) == 0 })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, call := range r.calls[calls:] {
		if strings.HasPrefix(call, "delete") || strings.HasPrefix(call, "prune") {
			t.Errorf("after the server came back: %s", call)
		}
	}
}

func awaitStatus(t *testing.T, w *Watcher, ok func(Status) bool) {
	t.Helper()
	deadline, tick := time.After(2*time.Minute), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for !ok(w.Status()) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("status stays %+v", w.Status())
		}
	}
}

// The credentials may name a ClusterIP that nothing translates yet.
func TestServersAreDialledInsteadOfTheClusterIP(t *testing.T) {
	c := newCluster(t)
	c.service("web")
	cfg := c.config()
	path, err := c.server.Kubeconfig("clusterip", kubetest.AdminToken, "https://"+kubetest.ServiceIP)
	c.must(err)
	cfg.Kubeconfig = path
	cfg.Servers = []string{"127.0.0.1:1", c.server.Addr()} // the first one refuses
	r := newRecord()
	w := c.watch(cfg, r)
	c.must(w.Synced(t.Context()))
	r.await(t, "the service", func(r *record) bool { return c.own(r) == "web" })
}

func TestRefusedCredentialsChangeNothing(t *testing.T) {
	c := newCluster(t)
	c.service("web")
	cfg := c.config()
	path, err := c.server.Kubeconfig("stranger", "no-such-token", "")
	c.must(err)
	cfg.Kubeconfig = path
	r := newRecord("old/kept")
	w := c.watch(cfg, r)
	awaitStatus(t, w, func(s Status) bool {
		return len(s.Source.Faults) == len(s.Source.Kinds) && strings.Contains(s.Source.Faults[0], "Unauthorized")
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) != 0 || c.own(r) != "kept" {
		t.Errorf("sinks were called: %q", r.calls)
	}
}
