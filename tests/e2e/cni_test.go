// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// cnitool calls the CNI plugin as another runtime would.
func cnitool(ctx context.Context, n *cluster.Node, verb, netns string) (string, error) {
	return n.Run(ctx, "env", "NETCONFPATH=/etc/cni/e2e", "CNI_PATH="+shared.Bin, "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		filepath.Join(shared.Tools, "cnitool"), verb, "e2e", netns)
}

func TestCNIPlugin(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	const conflist = `{"cniVersion": "1.1.0", "name": "e2e", "plugins": [{"type": "nodeagent-cni"}]}`
	if err := n.WriteFile("/etc/cni/e2e/10-e2e.conflist", []byte(conflist)); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := n.Run(t.Context(), args[0], args[1:]...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	call := func(verb, netns string) string {
		t.Helper()
		out, err := cnitool(t.Context(), n, verb, netns)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := leases(t, n)
	run("ip", "netns", "add", "e2e")
	t.Cleanup(func() { _, _ = n.Run(context.Background(), "ip", "netns", "delete", "e2e") })
	const netns = "/run/netns/e2e"
	var result struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal([]byte(call("add", netns)), &result); err != nil || len(result.IPs) != 2 {
		t.Fatalf("addresses are %v: %v", result, err)
	}
	if got := leases(t, n); got != before+2 {
		t.Errorf("%d leases, want %d", got, before+2)
	}
	call("check", netns)
	for _, ip := range result.IPs {
		addr, _, _ := strings.Cut(ip.Address, "/")
		run("busybox", "ping", "-c", "1", "-W", "5", addr)
	}
	ns := namespace(t)
	web(t, ns)
	var svc struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, ns, "get", "service", "web", "-o", "json")), &svc); err != nil {
		t.Fatal(err)
	}
	has(t, "answer", run("nsenter", "--net="+netns, "busybox", "wget", "-qO-", "http://"+svc.Spec.ClusterIP), "hello from web")
	for range 2 { // a second delete is no error
		call("del", netns)
	}
	if got := leases(t, n); got > before+2 {
		t.Errorf("%d leases after the delete, %d before the add", got, before)
	}
	if _, err := cnitool(t.Context(), n, "check", netns); err == nil {
		t.Error("check of what was deleted succeeds")
	}
}

func TestCNIPluginRefuses(t *testing.T) {
	onlyNodeagent(t)
	n := shared.Nodes[0]
	if err := n.WriteFile("/etc/cni/e2e/10-e2e.conflist", []byte(`{"cniVersion": "1.1.0", "name": "e2e", "plugins": [{"type": "nodeagent-cni"}]}`)); err != nil {
		t.Fatal(err)
	}
	before := leases(t, n)
	for _, path := range []string{"/etc/passwd", "/no/such/path", "/run"} {
		out, err := cnitool(t.Context(), n, "add", path)
		if err == nil {
			t.Errorf("add to %s succeeds: %s", path, out)
		}
	}
	if got := leases(t, n); got != before {
		t.Errorf("%d leases after refused calls, %d before", got, before)
	}
}

// leases counts the addresses that the node has given away.
func leases(t *testing.T, n *cluster.Node) int {
	t.Helper()
	out, err := n.Run(t.Context(), filepath.Join(shared.Bin, "nodeagent"), "ipam", "leases", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(fmt.Errorf("%w in %s", err, out))
	}
	return len(all)
}
