// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The laboratory: network namespaces as hosts, as pods and as the world, and
// one real data path per host, in a process of its own, which can be killed.

const labEnv = "NODEAGENT_LAB"

func TestMain(m *testing.M) {
	roles := map[string]func() int{"agent": agentMain, "ask": askMain, "talk": talkMain, "probe": probeMain}
	if role, ok := roles[os.Getenv(labEnv)]; ok {
		os.Exit(role()) //nolint:forbidigo // a process of the laboratory, not a test
	}
	goleak.VerifyTestMain(m)
}

// needRoot fails without root, unless root tests are switched off.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("needs root")
	}
	tb.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
}

// netns is a network namespace, held by a bind mount.
type netns struct{ path string }

func newNetNS(tb testing.TB, name string) netns {
	tb.Helper()
	path := filepath.Join(labDir(tb), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	done := make(chan error)
	go func() {
		// The thread keeps the new namespace, so it must end with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		done <- unix.Mount(self, path, "", unix.MS_BIND, "")
	}()
	if err := <-done; err != nil {
		tb.Fatalf("make namespace: %v", err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			tb.Errorf("unmount namespace: %v", err)
		}
	})
	n := netns{path}
	n.run(tb, "ip link set lo up")
	return n
}

var labDirs sync.Map

// labDir is the test's directory; short, and removed after the mounts in it.
func labDir(tb testing.TB) string {
	tb.Helper()
	if dir, ok := labDirs.Load(tb.Name()); ok {
		return dir.(string) //nolint:errcheck // nothing else is stored there
	}
	dir, err := os.MkdirTemp("", "lab") //nolint:usetesting // TempDir is removed before the mounts in it
	if err != nil {
		tb.Fatal(err)
	}
	labDirs.Store(tb.Name(), dir)
	tb.Cleanup(func() {
		labDirs.Delete(tb.Name())
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// run runs a script in the namespace and returns what it prints.
func (n netns) run(tb testing.TB, script string) string {
	tb.Helper()
	out, err := exec.Command("nsenter", "--net="+n.path, "sh", "-ec", script).CombinedOutput()
	if err != nil {
		tb.Fatalf("in %s: %s: %v\n%s", filepath.Base(n.path), script, err, out)
	}
	return string(out)
}

// do calls fn on a thread inside the namespace. Sockets that it opens stay there.
func (n netns) do(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		f, err := os.Open(n.path)
		if err != nil {
			done <- err
			return
		}
		err = errors.Join(unix.Setns(int(f.Fd()), unix.CLONE_NEWNET), f.Close())
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// host is a node of the laboratory.
type host struct {
	netns
	name   string
	bpffs  string
	cgroup string
	cfg    Config
	node   Node
	agent  *agent
	object string // programs of its agents; empty: those that are built in
	dieAt  string // step of an upgrade at which they kill themselves
	pods   map[string]*pod
	// policies: the agent waits for them, if it is started anew
	policies bool
}

// pod is a pod of the laboratory, wired as the CNI does it.
type pod struct {
	netns
	host  *host
	ep    Endpoint
	addrs []netip.Addr
}

// lab is two networks: hosts on one link, and the world behind it.
type lab struct {
	world     netns
	hosts     []*host
	configure func(*Config)
}

var worldAddrs = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:ffff::1")}

func (l *lab) hostAddrs(i int) []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)),
		netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)),
	}
}

func newLab(tb testing.TB, hosts int) *lab {
	tb.Helper()
	return newLabWith(tb, hosts, func(*Config) {})
}

// newLabWith makes a laboratory whose hosts have another configuration.
func newLabWith(tb testing.TB, hosts int, configure func(*Config)) *lab {
	tb.Helper()
	needRoot(tb)
	l := &lab{world: newNetNS(tb, "world"), configure: configure}
	l.world.run(tb, `
		ip link add br0 type bridge
		ip addr add 192.0.2.254/24 dev br0
		ip addr add 2001:db8:1::fe/64 dev br0 nodad
		ip link set br0 up
		ip addr add 198.51.100.1/32 dev lo
		ip addr add 2001:db8:ffff::1/128 dev lo`)
	for i := range hosts {
		l.hosts = append(l.hosts, l.newHost(tb, i))
	}
	return l
}

func (l *lab) newHost(tb testing.TB, i int) *host {
	tb.Helper()
	h := &host{name: fmt.Sprintf("host%d", i), pods: map[string]*pod{}}
	h.netns = newNetNS(tb, h.name)
	a := l.hostAddrs(i)
	l.world.run(tb, fmt.Sprintf(`
		ip link add to%d type veth peer name eth0 netns %s
		ip link set to%d master br0 up`, i, h.path, i))
	h.run(tb, fmt.Sprintf(`
		ip addr add %s/24 dev eth0
		ip addr add %s/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via 192.0.2.254
		ip -6 route add default via 2001:db8:1::fe`, a[0], a[1]))
	h.bpffs = filepath.Join(labDir(tb), h.name+".bpf")
	if err := os.Mkdir(h.bpffs, 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Mount("bpf", h.bpffs, "bpf", 0, ""); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(h.bpffs, 0); err != nil {
			tb.Errorf("unmount bpffs: %v", err)
		}
	})
	h.cgroup = newCgroup(tb, h.name)
	h.cfg = Default()
	h.cfg.BPFFS = filepath.Join(h.bpffs, "na")
	h.cfg.Cgroup = h.cgroup
	h.cfg.Maps = MapSizes{Conntrack: 8192, Endpoints: 256, Services: 4096, Backends: 16384, Routes: 1024, Affinity: 1024, Identities: 1024, Rules: 1024}
	l.configure(&h.cfg)
	h.node = Node{
		Name:  h.name,
		Addrs: a,
		PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", i+1)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:%d::/64", i+1)),
		},
		Masquerade: true,
	}
	h.startAgent(tb)
	tb.Cleanup(func() { h.agent.stop(tb) })
	return h
}

func newCgroup(tb testing.TB, name string) string {
	tb.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "unified")); err == nil {
		root = filepath.Join(root, "unified")
	}
	dir, err := os.MkdirTemp(root, "nodeagent-lab-"+name+"-") //nolint:usetesting // a cgroup is made in its hierarchy
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			tb.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

// addPod makes a pod's namespace and link, and brings it into the data path.
func (h *host) addPod(tb testing.TB, name string) *pod {
	tb.Helper()
	p := h.wirePod(tb, name)
	h.agent.must(tb, "UpdateEndpoint", p.ep)
	return p
}

func (h *host) wirePod(tb testing.TB, name string) *pod {
	tb.Helper()
	n := len(h.pods) + 2
	p := &pod{netns: newNetNS(tb, h.name+"-"+name), host: h}
	h.pods[name] = p
	for _, c := range h.node.PodCIDRs {
		b := c.Addr().AsSlice()
		b[len(b)-1] = byte(n)
		a, _ := netip.AddrFromSlice(b)
		p.addrs = append(p.addrs, a)
	}
	veth := "v" + name
	h.run(tb, fmt.Sprintf(`
		ip link add %[1]s type veth peer name eth0 netns %[2]s
		ip link set %[1]s up
		ip route add %[3]s/32 dev %[1]s
		ip -6 route add %[4]s/128 dev %[1]s`, veth, p.path, p.addrs[0], p.addrs[1]))
	hostMAC := strings.TrimSpace(h.run(tb, "nsenter --net="+h.path+" cat /proc/net/dev >/dev/null; ip -o link show "+veth+" | sed 's/.*ether \\([^ ]*\\).*/\\1/'"))
	p.run(tb, fmt.Sprintf(`
		ip addr add %[1]s/32 dev eth0
		ip addr add %[2]s/128 dev eth0 nodad
		ip link set eth0 up
		ip neigh add 169.254.1.1 lladdr %[3]s dev eth0 nud permanent
		ip neigh add fe80::1 lladdr %[3]s dev eth0 nud permanent
		ip route add 169.254.1.1 dev eth0
		ip route add default via 169.254.1.1
		ip -6 route add default via fe80::1 dev eth0`, p.addrs[0], p.addrs[1], hostMAC))
	mac := strings.TrimSpace(p.run(tb, "ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'"))
	h.run(tb, fmt.Sprintf(`
		ip neigh add %s lladdr %s dev %s nud permanent
		ip neigh add %s lladdr %s dev %s nud permanent`, p.addrs[0], mac, veth, p.addrs[1], mac, veth))
	idx := strings.TrimSpace(h.run(tb, "ip -o link show "+veth+" | cut -d: -f1"))
	p.ep = Endpoint{ID: name + "/eth0", Name: name, IfName: veth, Addrs: p.addrs}
	if _, err := fmt.Sscan(idx, &p.ep.IfIndex); err != nil {
		tb.Fatal(err)
	}
	p.ep.MAC, _ = net.ParseMAC(mac)
	p.ep.HostMAC, _ = net.ParseMAC(hostMAC)
	return p
}
