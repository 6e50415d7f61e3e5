// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// server is a web server on port 8080.
func server(c *runtimeapi.ContainerConfig) { c.Image, c.Command = spec(cluster.WebImage), nil }

// answers waits until a web server answers the node at an address.
func (p *pod) answers(addr string) {
	p.t.Helper()
	p.eventually(func() error {
		r, err := node.HTTPClient().Get("http://" + addr + "/healthz")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r.Body)
		if string(body) != "ok\n" {
			err = fmt.Errorf("%s answers %q", addr, body)
		}
		return errors.Join(err, r.Body.Close())
	})
}

func TestDNSConfig(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.10.10.10", "fd00::10"}, Searches: []string{"a.test", "b.test"}, Options: []string{"ndots:8", "timeout:1"}}
	})
	id, _ := p.start(nil)
	got := p.sh(id, "sort /etc/resolv.conf")
	if got != "nameserver 10.10.10.10\nnameserver fd00::10\noptions ndots:8 timeout:1\nsearch a.test b.test" {
		t.Errorf("resolv.conf:\n%s", got)
	}
}

func TestAddressesAndPorts(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 8080}, {ContainerPort: 8080, HostPort: 18080}}
	})
	id, _ := p.start(server)
	r, err := rs.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	network := r.GetStatus().GetNetwork()
	if len(network.GetAdditionalIps()) != 1 {
		t.Errorf("addresses: %v", network)
	}
	for _, ip := range append([]string{network.GetIp()}, network.GetAdditionalIps()[0].GetIp()) {
		p.answers(net.JoinHostPort(ip, "8080"))
	}
	p.answers(node.IP4 + ":18080")
	p.answers("127.0.0.1:18080")
	other, _ := p.start(nil)
	if got := p.sh(other, "wget -qO- http://127.0.0.1:8080/healthz"); got != "ok" {
		t.Errorf("its neighbour in the pod gets %q", got)
	}
	if _, err := rs.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if s := p.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("its container is %s", s.GetState())
	}
	p.eventually(func() error {
		conn, err := node.Dial(t.Context(), "tcp", node.IP4+":18080")
		if err == nil {
			return errors.Join(errors.New("the host port still answers"), conn.Close())
		}
		return nil
	})
}

func TestPodsReachEachOther(t *testing.T) {
	a, b := newPod(t, nil), newPod(t, nil)
	a.start(server)
	id, _ := b.start(nil)
	r, err := rs.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: a.id})
	if err != nil {
		t.Fatal(err)
	}
	b.eventually(func() error {
		out, errOut, code := b.exec(id, "timeout", "5", "wget", "-qO-", "http://"+r.GetStatus().GetNetwork().GetIp()+":8080/healthz")
		if code != 0 || strings.TrimSpace(out) != "ok" {
			return fmt.Errorf("%d: %s%s", code, out, errOut)
		}
		return nil
	})
}
