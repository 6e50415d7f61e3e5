// SPDX-License-Identifier: Apache-2.0

package services

import (
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// TestAPIServer: what is added is listed, got and watched, in both languages.
func TestAPIServer(t *testing.T) {
	for _, media := range []string{mediaProtobuf, mediaJSON} {
		t.Run(media, func(t *testing.T) {
			api := newAPIServer()
			if err := api.add("nodes", nodeObject("node1", "192.0.2.1", "10.1.1.0/24")); err != nil {
				t.Fatal(err)
			}
			if err := api.put("node1", nil, fill(0, 100, 5, netip.MustParseAddr("10.1.1.2"))...); err != nil {
				t.Fatal(err)
			}
			server := httptest.NewServer(api)
			t.Cleanup(server.Close)
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: media, AcceptContentTypes: media}})
			if err != nil {
				t.Fatal(err)
			}
			list, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
			if err != nil || len(list.Items) != 100 || list.Items[7].Spec.ClusterIP != clusterIP(7).String() {
				t.Fatalf("%d services: %v", len(list.Items), err)
			}
			node, err := client.CoreV1().Nodes().Get(t.Context(), "node1", metav1.GetOptions{})
			if err != nil || node.Spec.PodCIDR != "10.1.1.0/24" {
				t.Errorf("node is %+v: %v", node, err)
			}
			if _, err := client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); err == nil {
				t.Error("there are secrets")
			}
			checkInformer(t, api, client)
		})
	}
}

func checkInformer(t *testing.T, api *apiServer, client kubernetes.Interface) {
	t.Helper()
	f := informers.NewSharedInformerFactory(client, 0)
	slices, svcs := f.Discovery().V1().EndpointSlices().Lister(), f.Core().V1().Services().Informer()
	f.Discovery().V1().EndpointSlices().Informer()
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	if n := len(svcs.GetStore().ListKeys()); n != 100 {
		t.Fatalf("the informer has %d services", n)
	}
	if err := api.put("node1", nil, service{name: "more", addr: target}); err != nil {
		t.Fatal(err)
	}
	err := lab.Until(t.Context(), time.Millisecond, func() error {
		_, err := slices.EndpointSlices("default").Get("more-x")
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestFill(t *testing.T) {
	alive := netip.MustParseAddr("10.1.1.2")
	found := 0
	for _, s := range fill(10, 500, 5, alive) {
		switch {
		case s.backends[0] == alive && len(s.backends) == 1:
			found++
		case len(s.backends) != 5:
			t.Fatalf("%s has %d backends", s.name, len(s.backends))
		}
	}
	if found < 10 || found > 20 {
		t.Errorf("%d sentinels", found)
	}
	if !isSentinel(499, 500) || !isSentinel(0, 1) {
		t.Error("the last one is no sentinel")
	}
}
