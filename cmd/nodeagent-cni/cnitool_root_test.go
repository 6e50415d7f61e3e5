// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/dataplane"
)

// heard is a data path that remembers the endpoints it is told of.
type heard map[string]dataplane.Endpoint

var _ cni.Dataplane = heard{}

func (h heard) UpdateEndpoint(_ context.Context, ep dataplane.Endpoint) error {
	h[ep.ID] = ep
	return nil
}

func (h heard) DeleteEndpoint(_ context.Context, id string) error {
	delete(h, id)
	return nil
}

func (h heard) PruneEndpoints(context.Context, []string) error { return nil }

// capabilities are what a runtime asks for by CNI's conventions.
const capabilities = `{
	"mac": "0a:00:00:00:00:09",
	"ips": ["10.88.2.2/16"],
	"portMappings": [
		{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
		{"hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.10"}
	],
	"bandwidth": {"ingressRate": 8000000, "ingressBurst": 16000000, "egressRate": 4000000, "egressBurst": 8000000},
	"dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]}
}`

// TestRootCnitool goes through the verbs with the reference runtime, which hands
// on every capability that our configuration says we have.
func TestRootCnitool(t *testing.T) {
	n, told := newNode(t), heard{}
	n.stop()
	n.conflist, n.endpoints = filepath.Join(n.dir, "net.d", "10-nodeagent.conflist"), told
	n.start()
	bin, err := binDir()
	if err != nil {
		t.Fatal(err)
	}
	ns := n.newNS()
	tool := func(verb string) (string, error) {
		cmd := exec.Command(cached(t, "cnitool"), verb, "nodeagent", ns)
		cmd.Env = []string{
			"CNI_PATH=" + bin, "NETCONFPATH=" + filepath.Dir(n.conflist), "CNI_IFNAME=net1", "PATH=/", "CAP_ARGS=" + capabilities,
		}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() { _, _ = tool("del") }) // leaves nothing in libcni's cache
	for _, verb := range []string{"status", "add", "check", "del", "del", "status"} {
		out, err := tool(verb)
		if err != nil {
			t.Fatalf("%s: %v: %s", verb, err, out)
		}
		if verb != "add" {
			continue
		}
		for _, want := range []string{"10.88.2.2/32", "0a:00:00:00:00:09", "10.96.0.10", "svc.cluster.local", "ndots:5"} {
			if !strings.Contains(out, want) {
				t.Errorf("add: no %s in %s", want, out)
			}
		}
		checkAsked(t, told)
	}
	if left := interfaces(t, ns); len(left)+len(n.net.Leases())+len(told) != 0 {
		t.Errorf("left: %v, %v, %v", left, n.net.Leases(), told)
	}
}

// checkAsked: the data path is asked for ports and limits, in bytes a second.
func checkAsked(t *testing.T, told heard) {
	t.Helper()
	for _, ep := range told {
		ports := []dataplane.HostPort{
			{HostPort: 8080, ContainerPort: 80, Protocol: 6},
			{HostPort: 8053, ContainerPort: 53, Protocol: 17, HostIP: netip.MustParseAddr("192.0.2.10")},
		}
		if !reflect.DeepEqual(ep.HostPorts, ports) {
			t.Errorf("ports %+v, want %+v", ep.HostPorts, ports)
		}
		if ep.IngressRate != 1e6 || ep.EgressRate != 5e5 {
			t.Errorf("limits %d and %d, want %.0f and %.0f", ep.IngressRate, ep.EgressRate, 1e6, 5e5)
		}
	}
	if len(told) != 1 {
		t.Errorf("endpoints %v, want one", told)
	}
}
