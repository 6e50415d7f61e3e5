// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
	"github.com/nodeagent/nodeagent/cni/shim"
	"github.com/nodeagent/nodeagent/dataplane"
)

// agentEnv has the agentConfig of a process that is a daemon, not a test.
const agentEnv = "NODEAGENT_CNI_TEST_AGENT"

// agentConfig of a daemon with the real data path, in a process of its own,
// which can be killed.
type agentConfig struct{ Socket, DB, Queue, BPFFS, Cgroup string }

func TestMain(m *testing.M) {
	if raw := os.Getenv(agentEnv); raw != "" {
		if err := agentMain(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	netnstest.Main(m, removeBin)
}

// agentMain serves until its standard input ends.
func agentMain(raw string) error {
	var c agentConfig
	if err := json.Unmarshal([]byte(raw), &c); err != nil {
		return err
	}
	ctx := context.Background()
	log := slog.New(slog.DiscardHandler)
	db, err := bbolt.Open(c.DB, 0o600, &bbolt.Options{NoSync: true, Timeout: 10 * time.Second})
	if err != nil {
		return err
	}
	dcfg := dataplane.Default()
	dcfg.BPFFS, dcfg.Cgroup = c.BPFFS, c.Cgroup
	sizes := &dcfg.Maps
	sizes.Conntrack, sizes.Endpoints, sizes.Routes = 8192, 512, 64
	sizes.Services, sizes.Backends, sizes.Affinity = 64, 64, 64
	dp, err := dataplane.New(dcfg, dataplane.Deps{Log: log})
	if err != nil {
		return err
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd88::/64")}
	cfg := cni.Default()
	cfg.PodCIDRs, cfg.QueueDir = cidrs, c.Queue
	network, err := cni.New(cfg, cni.Deps{DB: db, Dataplane: dp, Socket: c.Socket, Log: log})
	if err != nil {
		return err
	}
	routes := api.CNIRoutes(network, log)
	maps.Copy(routes, api.NetworkRoutes(network))
	server, err := api.New(c.Socket, api.Deps{Log: log, Routes: routes})
	if err != nil {
		return err
	}
	node := dataplane.Node{Name: "node", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, PodCIDRs: cidrs}
	if _, err := network.Prepare(ctx); err != nil {
		return err
	}
	for _, start := range []func() error{
		func() error { return dp.SetNode(ctx, node) },
		func() error { return dp.Start(ctx) },
		func() error { return network.Start(ctx) },
		func() error { return server.Start(ctx) },
		func() error { return network.Open(ctx) },
	} {
		if err := start(); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return errors.Join(server.Stop(ctx), network.Stop(ctx), dp.Stop(ctx), db.Close())
}

// agent is a node whose daemon is a process with the real data path.
type agent struct {
	*node
	conf agentConfig
	cmd  *exec.Cmd
	in   io.WriteCloser
}

func newAgent(tb testing.TB) *agent {
	tb.Helper()
	n := newNode(tb)
	n.stop()
	a := &agent{node: n, conf: agentConfig{
		Socket: n.socket(), DB: filepath.Join(n.dir, "agent.db"), Queue: n.queue(), BPFFS: filepath.Join(n.dir, "bpf", "na"),
	}}
	a.mountBPF(tb)
	a.makeCgroup(tb)
	a.start()
	tb.Cleanup(func() { a.stop() })
	return a
}

func (a *agent) mountBPF(tb testing.TB) {
	tb.Helper()
	mount := filepath.Dir(a.conf.BPFFS)
	if err := errors.Join(os.Mkdir(mount, 0o700), unix.Mount("bpf", mount, "bpf", 0, "")); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			tb.Error(err)
		}
	})
}

func (a *agent) makeCgroup(tb testing.TB) {
	tb.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "unified")); err == nil {
		root = filepath.Join(root, "unified")
	}
	dir, err := os.MkdirTemp(root, "nodeagent-cni-test-") //nolint:usetesting // a cgroup is made in its hierarchy
	if err != nil {
		tb.Fatal(err)
	}
	a.conf.Cgroup = dir
	tb.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			tb.Error(err)
		}
	})
}

func (a *agent) start() {
	a.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := json.Marshal(a.conf)
	if err != nil {
		a.t.Fatal(err)
	}
	a.cmd = exec.Command(exe)
	a.cmd.Env = append(os.Environ(), agentEnv+"="+string(raw))
	a.cmd.Stderr = os.Stderr
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		a.t.Fatal(err)
	}
	if err := a.onHost(a.cmd.Start); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) stop() {
	a.t.Helper()
	if err := errors.Join(a.in.Close(), a.cmd.Wait(), os.Remove(a.conf.Socket)); err != nil {
		a.t.Errorf("agent: %v", err)
	}
}

// kill ends the daemon as kill -9 does.
func (a *agent) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Error(err)
	}
	_ = a.cmd.Wait() // it was killed: there is an error
	_ = a.in.Close() // nobody reads it any more
}

// owners returns the attachments that have addresses, once each.
func (a *agent) owners() (out []string) {
	a.t.Helper()
	var answer api.IPAM
	if err := api.NewClient(a.conf.Socket).Get(a.t.Context(), "/v1/ipam", &answer); err != nil {
		a.t.Fatal(err)
	}
	for _, l := range answer.Leases {
		out = append(out, l.Owner)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// podLinks counts the host ends of pods' links.
func (a *agent) podLinks() (n int) {
	a.t.Helper()
	for _, name := range interfaces(a.t, a.host) {
		if strings.HasPrefix(name, "nap") {
			n++
		}
	}
	return n
}

// TestRootKilledInTheMiddle kills the daemon again and again while pods are
// added. The plugin waits for the next daemon; a pod whose ADD was cut off is
// added again, as a runtime may after a DEL. In the end every pod is there, and
// after their deletion nothing is.
func TestRootKilledInTheMiddle(t *testing.T) {
	a := newAgent(t)
	const pods, kills = 60, 5
	results := make(chan error, pods)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range pods {
		id := fmt.Sprintf("pod-%d", i)
		ns := a.newNS()
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results <- a.addUntilDone(id, ns)
		})
	}
	for done := 1; done <= pods; done++ {
		if err := <-results; err != nil {
			t.Error(err)
		}
		if done%(pods/(kills+1)) == 0 {
			a.kill()
			a.start()
		}
	}
	wg.Wait()
	a.ready()
	if got := a.owners(); len(got) != pods {
		t.Errorf("%d pods have addresses, want %d", len(got), pods)
	}
	if n := a.podLinks(); n != pods {
		t.Errorf("%d links, want %d", n, pods)
	}
	a.kill()
	for i := range pods {
		if _, e := a.call(env("DEL", fmt.Sprintf("pod-%d", i), ""), a.node.conf("1.1.0", "")); e != nil {
			t.Errorf("DEL without a daemon: %v", e)
		}
		if i == pods/2 {
			a.start()
		}
	}
	a.ready()
	if got := a.owners(); len(got) != 0 {
		t.Errorf("addresses left: %v", got)
	}
}

// addUntilDone adds a pod as a runtime does: after a failure it deletes first.
func (a *agent) addUntilDone(id, ns string) error {
	conf := a.node.conf("1.1.0", "")
	for range 10 {
		_, e := a.call(env("ADD", id, ns), conf)
		if e == nil {
			return nil
		}
		if e.Code != shim.CodeTryAgain {
			return fmt.Errorf("%s: %w", id, e)
		}
		if _, e := a.call(env("DEL", id, ns), conf); e != nil {
			return fmt.Errorf("%s: DEL: %w", id, e)
		}
	}
	return fmt.Errorf("%s: cut off ten times", id)
}

// ready waits until the daemon serves: a call that waits for it has answered.
func (a *agent) ready() {
	a.t.Helper()
	gc := env("CHECK", "nobody", a.host)
	if _, e := a.call(gc, a.node.conf("1.1.0", `,"prevResult":{"cniVersion":"1.1.0"}`)); codeOf(e) != shim.CodeUnknown {
		a.t.Fatalf("the daemon does not serve: %v", e)
	}
}

// TestRootStreamSurvivesAKill: a connection between the node and a pod goes on
// while the daemon is killed and started again.
func TestRootStreamSurvivesAKill(t *testing.T) {
	a := newAgent(t)
	ns := a.newNS()
	out, e := a.call(env("ADD", "pod", ns), a.node.conf("1.1.0", ""))
	if e != nil {
		t.Fatal(e)
	}
	var res struct {
		IPs []struct{ Address netip.Prefix } `json:"ips"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatal(err)
	}
	ln := listenIn(t, ns, res.IPs[0].Address.Addr())
	var conn net.Conn
	err := a.onHost(func() (err error) {
		conn, err = net.DialTimeout("tcp", ln.Addr().String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's connection
	peer, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close() //nolint:errcheck // a test's connection
	for round := range 3 {
		for _, way := range [][2]net.Conn{{conn, peer}, {peer, conn}} {
			if err := pass(way[0], way[1]); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		a.kill()
		if err := pass(conn, peer); err != nil {
			t.Fatalf("round %d, without a daemon: %v", round, err)
		}
		a.start()
		a.ready()
	}
}

func listenIn(t *testing.T, path string, addr netip.Addr) net.Listener {
	t.Helper()
	var ln net.Listener
	n := &node{t: t, host: path}
	err := n.onHost(func() (err error) {
		ln, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
	})
	return ln
}

// pass sends some bytes from one end to the other.
func pass(from, to net.Conn) error {
	deadline := time.Now().Add(10 * time.Second)
	if err := errors.Join(from.SetDeadline(deadline), to.SetDeadline(deadline)); err != nil {
		return err
	}
	if _, err := from.Write([]byte("some bytes")); err != nil {
		return err
	}
	_, err := io.ReadFull(to, make([]byte, len("some bytes")))
	return err
}
