// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// proxyBinary is the kube-proxy that `make deps` builds.
func proxyBinary(tb testing.TB) string {
	tb.Helper()
	cache := os.Getenv("NODEAGENT_CACHE")
	if cache == "" {
		cache = "/var/cache/nodeagent"
	}
	path := filepath.Join(cache, "bin", "kube-proxy")
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("no kube-proxy (make deps): %v", err)
	}
	return path
}

// proxyAPI is as much of an API server as kube-proxy needs: lists that never
// change, and watches that never say anything.
func (h *host) proxyAPI(tb testing.TB, objs []service.Object) string {
	tb.Helper()
	var l net.Listener
	err := h.do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	services := corev1.ServiceList{TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}}
	slices := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}}
	for _, o := range objs {
		services.Items = append(services.Items, *o.Service)
		for _, s := range o.Slices {
			s.Labels = map[string]string{discoveryv1.LabelServiceName: o.Service.Name}
			slices.Items = append(slices.Items, *s)
		}
	}
	node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: h.name}}
	for _, a := range h.node.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	nodes := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}, Items: []corev1.Node{node}}
	for _, m := range []*metav1.ListMeta{&services.ListMeta, &slices.ListMeta, &nodes.ListMeta} {
		m.ResourceVersion = "1"
	}
	lists := map[string]any{
		"/api/v1/services": services, "/apis/discovery.k8s.io/v1/endpointslices": slices, "/api/v1/nodes": nodes,
		"/api/v1/nodes/" + h.name: func() corev1.Node {
			node.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
			return node
		}(),
	}
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list, ok := lists[r.URL.Path]
		switch {
		case !ok:
			w.WriteHeader(http.StatusNotFound)
		case r.URL.Query().Get("sendInitialEvents") != "":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`) //nolint:errcheck // it asks again
		case r.URL.Query().Get("watch") != "":
			w.(http.Flusher).Flush() //nolint:errcheck,forcetypeassert // the server's writers can
			<-r.Context().Done()
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(list) //nolint:errcheck // kube-proxy asks again
		}
	})}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	tb.Cleanup(func() {
		if err := srv.Close(); err != nil {
			tb.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			tb.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}

// kubeProxy runs kube-proxy on a host until the returned function ends it; its
// rules stay.
func (h *host) kubeProxy(tb testing.TB, mode string, objs []service.Object) (stop func()) {
	tb.Helper()
	dir := labDir(tb)
	config := fmt.Sprintf(`
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clientConnection: {kubeconfig: %q, contentType: application/json, acceptContentTypes: application/json}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
clusterCIDR: "10.0.0.0/16,fd00:10::/32"
`, mode, h.name, filepath.Join(dir, "kubeconfig"))
	kubeconfig := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`, h.proxyAPI(tb, objs))
	for name, text := range map[string]string{"config": config, "kubeconfig": kubeconfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+h.path, proxyBinary(tb), "--config="+filepath.Join(dir, "config"), "--v=2")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	stop = func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill() //nolint:errcheck // it may be gone
			cmd.Wait()         //nolint:errcheck // it was killed
		}
		if tb.Failed() {
			text, _ := os.ReadFile(log.Name())
			tb.Logf("kube-proxy: %s", tail(string(text), 30))
		}
	}
	tb.Cleanup(func() {
		stop()
		if err := log.Close(); err != nil {
			tb.Error(err)
		}
	})
	return stop
}

func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// eventually tries until it works.
func eventually(tb testing.TB, what string, try func() error) {
	tb.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err = try(); err == nil {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	tb.Fatalf("%s: %v", what, err)
}

// TestRootTakeover takes the services over from a real kube-proxy and hands
// them back, in both of its modes, under streams that must not notice.
func TestRootTakeover(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) { takeover(t, mode) })
	}
}

// takeoverLab is a node that kube-proxy serves, and those who use it.
type takeoverLab struct {
	*lab
	h        *host
	pods     []*pod
	services []service.Object
	// ways are who asks, what, and who answers.
	ways []takeoverWay
}

type takeoverWay struct {
	what string
	from netns
	to   netip.AddrPort
	name string
	udp  bool
}

func newTakeoverLab(t *testing.T) *takeoverLab {
	t.Helper()
	l := &takeoverLab{lab: newLabWith(t, 2, func(c *Config) { c.Services = false })}
	l.h = l.hosts[0]
	h, far := l.h, l.hosts[1].addPod(t, "far")
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	l.join(t, "auto")
	l.pods = []*pod{a, b}
	a.serve(t, "a", 8080, a.addrs...)
	b.serve(t, "b", 8080, b.addrs...)
	far.serve(t, "far", 8080, far.addrs...)
	l.world.serve(t, "world", 8080, worldAddrs...)
	l.services = []service.Object{
		external(newService("b", vips(1), 8080, b.target()), 30080, nil, false),
		external(newService("far", vips(2), 8080, far.target()), 30081, nil, false),
		newService("world", vips(3), 8080, target{worldAddrs, "", true}),
		external(newService("local", vips(4), 8080, b.target()), 30082, nil, true),
	}
	for _, o := range l.services {
		// One port number for two protocols needs two node ports here.
		for i := range o.Service.Spec.Ports {
			o.Service.Spec.Ports[i].TargetPort.IntVal = 8080
		}
		if o.Service.Spec.ExternalTrafficPolicy == "" && o.Service.Spec.Type != corev1.ServiceTypeClusterIP {
			o.Service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}
		o.Service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	for i := range 2 {
		for _, w := range []takeoverWay{
			{"pod to a pod", a.netns, netip.AddrPortFrom(vips(1)[i], 80), "b", true},
			{"pod to a far pod", a.netns, netip.AddrPortFrom(vips(2)[i], 80), "far", true},
			{"pod to the world", a.netns, netip.AddrPortFrom(vips(3)[i], 80), "world", true},
			{"pod to itself", b.netns, netip.AddrPortFrom(vips(1)[i], 80), "b", true},
			{"node to a pod", h.netns, netip.AddrPortFrom(vips(1)[i], 80), "b", false},
			{"node to a far pod", h.netns, netip.AddrPortFrom(vips(2)[i], 80), "far", false},
			{"world to a pod", l.world, netip.AddrPortFrom(h.node.Addrs[i], 30080), "b", true},
			{"world to a far pod", l.world, netip.AddrPortFrom(h.node.Addrs[i], 30081), "far", true},
			{"world to a pod, local", l.world, netip.AddrPortFrom(h.node.Addrs[i], 30082), "b", true},
			{"pod to a pod, no service", a.netns, netip.AddrPortFrom(b.addrs[i], 8080), "b", true},
			{"pod to a far pod, no service", a.netns, netip.AddrPortFrom(far.addrs[i], 8080), "far", true},
			{"far pod to a pod, no service", far.netns, netip.AddrPortFrom(b.addrs[i], 8080), "b", true},
			{"pod to the world, no service", a.netns, netip.AddrPortFrom(worldAddrs[i], 8080), "world", true},
		} {
			w.what += "/" + family(w.to.Addr())
			l.ways = append(l.ways, w)
		}
	}
	return l
}

// again starts the agent of the node anew, with or without services.
func (l *takeoverLab) again(t *testing.T, services bool) {
	t.Helper()
	h := l.h
	h.agent.kill(t)
	h.cfg.Services = services
	h.startAgent(t)
	ids := []string{}
	for _, p := range l.pods {
		h.agent.must(t, "UpdateEndpoint", p.ep)
		ids = append(ids, p.ep.ID)
	}
	l.joinOne(t, h, "auto")
	if services {
		h.agent.must(t, "UpdateServices", l.services)
		names := []types.NamespacedName{}
		for _, o := range l.services {
			names = append(names, o.Name())
		}
		h.agent.must(t, "PruneServices", names)
	}
	h.agent.must(t, "PruneEndpoints", ids)
}

// askAll asks everybody anew. Processes of the node need the socket programs,
// or kube-proxy.
func (l *takeoverLab) askAll(t *testing.T, when string) {
	t.Helper()
	for _, w := range l.ways {
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && !w.udp {
				continue
			}
			var name string
			var err error
			if w.from.path == l.h.path {
				var got answer
				got, err = w.from.askAt(l.h.cgroup, network, w.to)
				name = got.name
			} else {
				name, _, err = w.from.ask(network, w.to)
			}
			if err != nil || name != w.name {
				t.Errorf("%s: %s, %s: %s answers, %v; want %s", when, w.what, network, name, err, w.name)
			}
		}
	}
}

func takeover(t *testing.T, mode string) {
	t.Helper()
	l := newTakeoverLab(t)
	stop := l.h.kubeProxy(t, mode, l.services)
	eventually(t, "kube-proxy", func() error {
		var errs []error
		for i := range 2 {
			_, _, err := l.pods[0].ask("tcp", netip.AddrPortFrom(vips(1)[i], 80))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	l.askAll(t, "with kube-proxy")
	if t.Failed() {
		return
	}
	var streams []*stream
	progress := func(when string) {
		t.Helper()
		for i, s := range streams {
			select {
			case err := <-s.done:
				t.Fatalf("%s: stream %d: %v", when, i, err)
			default:
				s.progress(t)
			}
		}
	}
	for _, w := range l.ways {
		streams = append(streams, w.from.streamAt(t, w.to, 4*time.Millisecond))
	}
	progress("before")
	l.again(t, true)
	progress("taken over")
	for _, w := range l.ways {
		if w.from.path != l.h.path {
			streams = append(streams, w.from.streamAt(t, w.to, 4*time.Millisecond))
		}
	}
	l.askAll(t, "taken over")
	l.again(t, true)
	progress("taken over, and started again")
	l.again(t, false)
	progress("handed back")
	l.askAll(t, "handed back")
	l.again(t, true)
	progress("taken over again")
	stop()
	l.askAll(t, "without kube-proxy")
	progress("without kube-proxy")
	for _, s := range streams {
		s.finish(t)
	}
}
