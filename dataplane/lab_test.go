// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// The laboratory: network namespaces as hosts, as pods and as the world, and
// one real data path per host, in a process of its own, which can be killed.

const labEnv = "NODEAGENT_LAB"

func TestMain(m *testing.M) {
	switch os.Getenv(labEnv) {
	case "":
		os.Exit(m.Run())
	case "agent":
		os.Exit(agentMain())
	case "ask":
		os.Exit(askMain())
	default:
		fmt.Fprintln(os.Stderr, "unknown role")
		os.Exit(2)
	}
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
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	f.Close()
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
		return dir.(string)
	}
	dir, err := os.MkdirTemp("", "lab")
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
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
		}
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
	pods   map[string]*pod
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
	world netns
	hosts []*host
}

var (
	worldAddrs = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:ffff::1")}
	clusterIPs = []string{"10.96.0.0/12", "fd00:96::/112"}
)

func (l *lab) hostAddrs(i int) []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)),
		netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", i+1)),
	}
}

func newLab(tb testing.TB, hosts int) *lab {
	tb.Helper()
	needRoot(tb)
	l := &lab{world: newNetNS(tb, "world")}
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
	h.cfg.Maps = MapSizes{Conntrack: 8192, Endpoints: 256, Services: 4096, Backends: 16384, Routes: 1024, Affinity: 1024}
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
	dir, err := os.MkdirTemp(root, "nodeagent-lab-"+name+"-")
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

// agent is a data path in a process of its own.
type agent struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	mu  sync.Mutex
}

type labCall struct {
	Verb string
	Args json.RawMessage
}

type labReply struct {
	Err  string
	Data json.RawMessage
}

func (h *host) startAgent(tb testing.TB) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+h.path, exe)
	cmd.Env = append(os.Environ(), labEnv+"=agent")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<24)
	h.agent = &agent{cmd: cmd, in: in, out: sc}
	h.agent.must(tb, "SetNode", h.node)
	h.agent.must(tb, "Start", h.cfg)
}

// call calls a verb of the data path.
func (a *agent) call(verb string, args any) (json.RawMessage, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(labCall{verb, raw})
	if err != nil {
		return nil, err
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	if !a.out.Scan() {
		return nil, errors.New("agent is gone")
	}
	var r labReply
	if err := json.Unmarshal(a.out.Bytes(), &r); err != nil {
		return nil, err
	}
	if r.Err != "" {
		return nil, errors.New(r.Err)
	}
	return r.Data, nil
}

func (a *agent) must(tb testing.TB, verb string, args any) json.RawMessage {
	tb.Helper()
	data, err := a.call(verb, args)
	if err != nil {
		tb.Fatalf("%s: %v", verb, err)
	}
	return data
}

// kill ends the agent as a crash would.
func (a *agent) kill(tb testing.TB) {
	tb.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		tb.Fatal(err)
	}
	a.cmd.Wait() //nolint:errcheck // it was killed: there is an error
}

func (a *agent) stop(tb testing.TB) {
	tb.Helper()
	if a.cmd.ProcessState != nil {
		return
	}
	a.in.Close()
	if err := a.cmd.Wait(); err != nil {
		tb.Errorf("agent: %v", err)
	}
}

// agentMain is the process of an agent: one call a line, one reply a line.
func agentMain() int {
	ctx := context.Background()
	var d *Dataplane
	var node Node
	level := slog.LevelError
	if os.Getenv("NODEAGENT_LAB_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	sc := bufio.NewScanner(os.Stdin)
	sc.Buffer(nil, 1<<24)
	for sc.Scan() {
		var c labCall
		var r labReply
		err := json.Unmarshal(sc.Bytes(), &c)
		if err == nil {
			switch c.Verb {
			case "Start":
				var cfg Config
				if err = json.Unmarshal(c.Args, &cfg); err == nil {
					if d, err = New(cfg, Deps{Log: log}); err == nil {
						err = errors.Join(d.SetNode(ctx, node), d.Start(ctx))
					}
				}
			case "SetNode":
				node = Node{}
				if err = json.Unmarshal(c.Args, &node); err == nil && d != nil {
					err = d.SetNode(ctx, node)
				}
			default:
				r.Data, err = agentCall(ctx, d, c)
			}
		}
		if err != nil {
			r.Err = err.Error()
		}
		line, _ := json.Marshal(r)
		fmt.Println(string(line))
	}
	if d != nil {
		if err := d.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

func with[T any](raw json.RawMessage, fn func(T) error) error {
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	return fn(v)
}

func agentCall(ctx context.Context, d *Dataplane, c labCall) (json.RawMessage, error) {
	switch c.Verb {
	case "UpdateEndpoint":
		return nil, with(c.Args, func(ep Endpoint) error { return d.UpdateEndpoint(ctx, ep) })
	case "DeleteEndpoint":
		return nil, with(c.Args, func(id string) error { return d.DeleteEndpoint(ctx, id) })
	case "PruneEndpoints":
		return nil, with(c.Args, func(ids []string) error { return d.PruneEndpoints(ctx, ids) })
	case "UpdatePeers":
		return nil, with(c.Args, func(p []Peer) error { return d.UpdatePeers(ctx, p) })
	case "UpdateServices":
		return nil, with(c.Args, func(o []service.Object) error { return d.UpdateServices(ctx, o) })
	case "DeleteServices":
		return nil, with(c.Args, func(n []types.NamespacedName) error { return d.DeleteServices(ctx, n) })
	case "PruneServices":
		return nil, with(c.Args, func(n []types.NamespacedName) error { return d.PruneServices(ctx, n) })
	default:
		return nil, fmt.Errorf("unknown verb %q", c.Verb)
	}
}

const dialTimeout = 3 * time.Second

// serve answers on a port of addresses of the namespace: TCP and UDP begin with
// a line that says who serves whom; TCP then echoes. UDP needs the addresses:
// it would answer from another one otherwise.
func (n netns) serve(tb testing.TB, name string, port uint16, addrs ...netip.Addr) {
	tb.Helper()
	for _, a := range addrs {
		n.serveAt(tb, name, netip.AddrPortFrom(a, port))
	}
}

func (n netns) serveAt(tb testing.TB, name string, at netip.AddrPort) {
	tb.Helper()
	var l net.Listener
	var u net.PacketConn
	err := n.do(func() (err error) {
		if l, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", at.String())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintf(c, "%s %s\n", name, plain(c.RemoteAddr()))
				io.Copy(c, c) //nolint:errcheck // the client says what is missing
			}()
		}
	}()
	go func() {
		buf := make([]byte, 65536)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(writerTo{u, from}, "%s %s\n", name, plain(from))
		}
	}()
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// plain is an address without port and zone.
func plain(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// askAt asks from a process in a cgroup, where the socket programs are. It also
// returns the peer that the process believes to have.
func (n netns) askAt(cgroup, network string, to netip.AddrPort) (name, saw, peer string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", "", "", err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return "", "", "", err
	}
	defer dir.Close()
	cmd := exec.Command("nsenter", "--net="+n.path, exe, network, to.String())
	cmd.Env = append(os.Environ(), labEnv+"=ask")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", "", "", fmt.Errorf("%w: %s", err, out)
	}
	_, err = fmt.Sscan(string(out), &name, &saw, &peer)
	return name, saw, peer, err
}

// askMain is the process of askAt.
func askMain() int {
	c, err := net.DialTimeout(os.Args[1], os.Args[2], dialTimeout)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	name, saw, err := hello(c)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(name, saw, c.RemoteAddr())
	return 0
}

// ask connects from the namespace and returns the server's first line: its
// name, and the address it saw.
func (n netns) ask(network string, to netip.AddrPort) (name, saw string, err error) {
	err = n.do(func() error {
		c, err := net.DialTimeout(network, to.String(), dialTimeout)
		if err != nil {
			return err
		}
		name, saw, err = hello(c)
		return err
	})
	return name, saw, err
}

// hello reads the server's first line.
func hello(c net.Conn) (name, saw string, err error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(dialTimeout)) //nolint:errcheck // a socket has deadlines
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	_, err = fmt.Sscan(line, &name, &saw)
	return name, saw, err
}
