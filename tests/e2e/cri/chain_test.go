// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// The network of others: its ranges, and where it keeps what it gave away.
const (
	foreignRange  = "10.97.0.0/24"
	foreignLeases = "/run/e2e-leases"
	foreignDir    = "/etc/cni/e2e-foreign"
)

const foreignConf = `{"cniVersion": "1.0.0", "name": "foreign", "plugins": [
  {"type": "bridge", "bridge": "e2e-br0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "` + foreignLeases + `", "ranges": [[{"subnet": "` + foreignRange + `"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}`

// restart ends the daemon by a signal and waits until it serves pods again.
func restart(t *testing.T, sig unix.Signal) {
	t.Helper()
	old, _ := node.Runtime.PID()
	if err := node.Runtime.Signal(sig); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // also when the test ends
	defer cancel()
	err := cluster.WaitFor(ctx, func(ctx context.Context) error {
		if pid, _ := node.Runtime.PID(); pid == old {
			return errors.New("not started again yet")
		}
		s, err := rs.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range s.GetStatus().GetConditions() {
			if !c.GetStatus() {
				return fmt.Errorf("%s: %s", c.GetType(), c.GetMessage())
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// networked starts the daemon with more in its configuration of the network, until the test ends.
func networked(t *testing.T, more map[string]any) {
	t.Helper()
	if !onNodeagent() {
		t.Skip("containerd is started with one network")
	}
	if node.Runtime == nil {
		t.Skip("this daemon is systemd's, and its network the machine's own")
	}
	old := mustRead(t, configFile)
	cfg := map[string]any{}
	if err := yaml.Unmarshal(old, &cfg); err != nil {
		t.Fatal(err)
	}
	network, ok := cfg["network"].(map[string]any)
	if !ok {
		t.Fatalf("no network in %s", old)
	}
	maps.Copy(network, more)
	file, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	set := func(file []byte) {
		if err := node.WriteFile(configFile, file); err != nil {
			t.Fatal(err)
		}
		restart(t, unix.SIGTERM)
	}
	t.Cleanup(func() { set(old) })
	set(file)
}

// chained is the configuration of pods that get what the node's CNI configuration in a directory says.
func chained(dir string) map[string]any {
	return map[string]any{"enabled": true, "confDir": dir, "binDirs": []string{cluster.Default().Tools}}
}

// address is the pod's first one.
func (p *pod) address() netip.Addr {
	p.t.Helper()
	r, err := rs.PodSandboxStatus(p.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Fatal(err)
	}
	ip, err := netip.ParseAddr(r.GetStatus().GetNetwork().GetIp())
	if err != nil {
		p.t.Fatal(err)
	}
	return ip
}

func (p *pod) stop() {
	p.t.Helper()
	if _, err := rs.StopPodSandbox(p.t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Fatal(err)
	}
}

// foreignGiven are the addresses that the network of others has given away.
func foreignGiven(t *testing.T) string {
	t.Helper()
	out, err := node.Run(t.Context(), "find", filepath.Join(foreignLeases, "foreign"), "-name", "10.97.*", "-printf", "%f ")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// ownGiven counts the addresses that our network has given away.
func ownGiven(t *testing.T) int {
	t.Helper()
	bin, err := filepath.Abs("../../../bin/nodeagent")
	if err != nil {
		t.Fatal(err)
	}
	out, err := node.Run(t.Context(), bin, "ipam", "leases", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var all []json.RawMessage
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return len(all)
}

// TestForeignNetwork gives pods the bridge of others: addresses, ports, a daemon that is killed, the end. A pod
// that was there before is taken from the network that it has.
func TestForeignNetwork(t *testing.T) {
	if err := node.WriteFile(foreignDir+"/10-foreign.conflist", []byte(foreignConf)); err != nil {
		t.Fatal(err)
	}
	given := ownGiven(t)
	before := newPod(t, nil)
	networked(t, map[string]any{"chain": chained(foreignDir)})
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: 18082}}
	})
	p.start(server)
	ip := p.address()
	if !netip.MustParsePrefix(foreignRange).Contains(ip) || foreignGiven(t) != ip.String() {
		t.Errorf("address %s, given away %q", ip, foreignGiven(t))
	}
	other := newPod(t, nil)
	id, _ := other.start(nil)
	serves := func() {
		t.Helper()
		p.answers(net.JoinHostPort(ip.String(), "8080"))
		p.answers(node.IP4 + ":18082")
		if got := other.sh(id, "timeout 10 wget -qO- http://"+ip.String()+":8080/healthz"); got != "ok" {
			t.Errorf("its neighbour on the bridge gets %q", got)
		}
	}
	serves()
	restart(t, unix.SIGKILL)
	if got := p.address(); got != ip {
		t.Errorf("address %s after the restart, %s before", got, ip)
	}
	serves()
	before.stop()
	if got := ownGiven(t); got != given {
		t.Errorf("%d addresses of our own network, %d at first", got, given)
	}
	p.stop()
	other.stop()
	if got := foreignGiven(t); got != "" {
		t.Errorf("still given away: %s", got)
	}
	links, err := node.Run(t.Context(), "ip", "-o", "link", "show", "master", "e2e-br0")
	if err != nil || links != "" {
		t.Errorf("left at the bridge: %s, %v", links, err)
	}
	p.eventually(func() error {
		conn, err := node.Dial(t.Context(), "tcp", node.IP4+":18082")
		if err == nil {
			return errors.Join(errors.New("the host port still answers"), conn.Close())
		}
		return nil
	})
}

// TestChainedNetwork calls a plugin of others behind our own network.
func TestChainedNetwork(t *testing.T) {
	const dir = "/etc/cni/e2e-chained"
	networked(t, map[string]any{
		"chain": chained(dir),
		"conflist": map[string]any{
			"enabled": true, "path": dir + "/05-nodeagent.conflist",
			"chained": []map[string]any{{"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "321"}}},
		},
	})
	given := ownGiven(t)
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: 18083}}
	})
	p.start(server)
	id, _ := p.start(nil)
	if got := p.sh(id, "cat /proc/sys/net/core/somaxconn"); got != "321" {
		t.Errorf("somaxconn is %q", got)
	}
	ip := p.address()
	p.answers(net.JoinHostPort(ip.String(), "8080"))
	p.answers(node.IP4 + ":18083")
	restart(t, unix.SIGKILL)
	if got := p.address(); got != ip || ownGiven(t) != given+2 {
		t.Errorf("address %s after the restart, %s before; %d given away, %d at first", got, ip, ownGiven(t), given)
	}
	p.answers(node.IP4 + ":18083")
	p.stop()
	if got := ownGiven(t); got != given {
		t.Errorf("%d addresses given away, %d at first", got, given)
	}
}
