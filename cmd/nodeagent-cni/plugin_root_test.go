// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// binDir holds the program under test, built once.
var binDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", binPrefix)
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "nodeagent-cni"), ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return dir, nil
})

// removeBin removes what binDir made, if anything.
func removeBin() error {
	made, err := filepath.Glob(filepath.Join(os.TempDir(), binPrefix+"*"))
	for _, dir := range made {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// binPrefix begins the name of this process's binDir.
var binPrefix = fmt.Sprintf("nodeagent-cni-%d-", os.Getpid())

// node is a daemon's network with its API, in a namespace of its own.
type node struct {
	t    testing.TB
	dir  string
	host string
	// conflist is where the daemon writes its file; empty: nowhere.
	conflist string
	// endpoints hears of endpoints; nil: nobody does.
	endpoints cni.Dataplane
	db        *bbolt.DB
	net       *cni.Network
	server    *api.Server
}

func newNode(tb testing.TB) *node {
	tb.Helper()
	netnstest.RequireRoot(tb)
	n := &node{t: tb, dir: tb.TempDir()}
	n.host = n.newNS()
	if err := n.onHost(addNodeAddress); err != nil {
		tb.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(n.dir, "state.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		tb.Fatal(err)
	}
	n.db = db
	n.start()
	tb.Cleanup(func() {
		n.stop()
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return n
}

// addNodeAddress gives the node an address that pods can answer to.
func addNodeAddress() error {
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}
	addr, err := netlink.ParseAddr("192.0.2.10/32")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, addr))
}

func (n *node) newNS() string {
	n.t.Helper()
	return netnstest.New(n.t)
}

func (n *node) socket() string { return filepath.Join(n.dir, "api.sock") }
func (n *node) queue() string  { return filepath.Join(n.dir, "queue") }

func (n *node) start() {
	n.t.Helper()
	cfg := cni.Default()
	cfg.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd88::/64")}
	cfg.QueueDir = n.queue()
	cfg.Conflist.Enabled = n.conflist != ""
	if n.conflist != "" {
		cfg.Conflist.Path = n.conflist
	}
	network, err := cni.New(cfg, cni.Deps{DB: n.db, HostNS: n.host, Dataplane: n.endpoints, Socket: n.socket(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server, err := api.New(n.socket(), api.Deps{Log: log, Routes: api.CNIRoutes(network, log)})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx := n.t.Context()
	if err := errors.Join(network.Start(ctx), server.Start(ctx), network.Open(ctx)); err != nil {
		n.t.Fatal(err)
	}
	n.net, n.server = network, server
}

func (n *node) stop() {
	n.t.Helper()
	if n.net == nil {
		return
	}
	ctx := context.Background()
	if err := errors.Join(n.server.Stop(ctx), n.net.Stop(ctx), os.Remove(n.socket())); err != nil {
		n.t.Error(err)
	}
	n.net = nil
}

// conf returns a network configuration; extra keys come last.
func (n *node) conf(version, extra string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"pods","type":"nodeagent-cni","socket":%q,"queue":%q%s}`,
		version, n.socket(), n.queue(), extra)
}

// env returns the environment of a call.
func env(verb, id, ns string) map[string]string {
	return map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": id, "CNI_NETNS": ns, "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin",
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + id,
	}
}

// call execs the plugin; an error is the one it printed.
func (n *node) call(env map[string]string, conf string) ([]byte, *shim.Error) {
	n.t.Helper()
	dir, err := binDir()
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "nodeagent-cni"))
	cmd.Env = []string{"PATH=/"}
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.Stdin = strings.NewReader(conf)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if stderr.Len() > 0 {
		n.t.Errorf("stderr: %s", stderr.String())
	}
	if err == nil {
		return out, nil
	}
	var e shim.Error
	if jerr := json.Unmarshal(out, &e); jerr != nil || e.Code == 0 {
		n.t.Fatalf("the plugin failed with %v and printed %q", err, out)
	}
	return nil, &e
}

// interfaces returns the interfaces of a namespace but lo.
func interfaces(tb testing.TB, path string) (names []string) {
	tb.Helper()
	netnstest.Do(tb, path, func() error {
		links, err := netlink.LinkList() //nolint:forbidigo // a test's namespace is quiet
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				names = append(names, l.Attrs().Name)
			}
		}
		return err
	})
	return names
}

// TestRootVersionsAndVerbs goes through every verb in every version.
func TestRootVersionsAndVerbs(t *testing.T) {
	n := newNode(t)
	for _, v := range shim.Versions() {
		t.Run(v, func(t *testing.T) {
			spoken, e := n.call(map[string]string{"CNI_COMMAND": "VERSION"}, n.conf(v, ""))
			if e != nil || !strings.Contains(string(spoken), `"cniVersion":"`+v+`"`) {
				t.Errorf("VERSION: %s, %v", spoken, e)
			}
			id := "pod-" + v
			ns := n.newNS()
			out, e := n.call(env("ADD", id, ns), n.conf(v, ""))
			if e != nil {
				t.Fatal(e)
			}
			checkResult(t, v, ns, out)
			_, e = n.call(env("CHECK", id, ns), n.conf(v, `,"prevResult":`+string(out)))
			checkSince(t, "CHECK", e, v >= "0.4.0")
			_, e = n.call(env("STATUS", "", ""), n.conf(v, ""))
			checkSince(t, "STATUS", e, v >= "1.1.0")
			_, e = n.call(env("GC", "", ""), n.conf(v, `,"cni.dev/valid-attachments":[{"containerID":"`+id+`","ifname":"eth0"}]`))
			checkSince(t, "GC", e, v >= "1.1.0")
			for range 2 {
				if out, e := n.call(env("DEL", id, ns), n.conf(v, "")); e != nil || len(out) != 0 {
					t.Errorf("DEL: %q, %v", out, e)
				}
			}
			if leases := n.net.Leases(); len(leases) != 0 {
				t.Errorf("leases left: %v", leases)
			}
		})
	}
}

// checkSince: a verb succeeds in the versions that have it.
func checkSince(t *testing.T, verb string, e *shim.Error, has bool) {
	t.Helper()
	want := shim.CodeVersion
	if has {
		want = 0
	}
	if codeOf(e) != want {
		t.Errorf("%s: %v, want code %d", verb, e, want)
	}
}

// checkResult reads a result of ADD as its version has it.
func checkResult(t *testing.T, version, ns string, out []byte) {
	t.Helper()
	var res struct {
		CNIVersion string `json:"cniVersion"`
		Interfaces []struct {
			Name, Sandbox, Mac string
		} `json:"interfaces"`
		IPs []struct {
			Version   string `json:"version"`
			Interface int    `json:"interface"`
			Address   string `json:"address"`
			Gateway   string `json:"gateway"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatal(err)
	}
	if res.CNIVersion != version || len(res.Interfaces) != 2 || len(res.IPs) != 2 {
		t.Fatalf("result %s", out)
	}
	if i := res.Interfaces[1]; i.Name != "eth0" || i.Sandbox != ns || res.IPs[0].Interface != 1 {
		t.Errorf("result %s", out)
	}
	if has := version < "1.0.0"; has != (res.IPs[0].Version == "4") {
		t.Errorf("ips[0].version = %q in %s", res.IPs[0].Version, version)
	}
	if res.IPs[0].Gateway != "169.254.1.1" || !strings.HasSuffix(res.IPs[0].Address, "/32") {
		t.Errorf("ips %+v", res.IPs)
	}
}

func codeOf(e *shim.Error) int {
	if e == nil {
		return 0
	}
	return e.Code
}

// TestRootBadInput: each gets the right code and changes nothing.
func TestRootBadInput(t *testing.T) {
	n := newNode(t)
	ns := n.newNS()
	file := filepath.Join(n.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	without := func(verb, name string) map[string]string {
		e := env(verb, "pod", ns)
		e[name] = ""
		return e
	}
	with := func(name, value string) map[string]string {
		e := env("ADD", "pod", ns)
		e[name] = value
		return e
	}
	good := n.conf("1.1.0", "")
	for _, tc := range []struct {
		name string
		env  map[string]string
		conf string
		code int
		says string
	}{
		{"ADD without id", without("ADD", "CNI_CONTAINERID"), good, shim.CodeEnvironment, "CNI_CONTAINERID"},
		{"ADD without netns", without("ADD", "CNI_NETNS"), good, shim.CodeEnvironment, "CNI_NETNS"},
		{"ADD without ifname", without("ADD", "CNI_IFNAME"), good, shim.CodeEnvironment, "CNI_IFNAME"},
		{"ADD without path", without("ADD", "CNI_PATH"), good, shim.CodeEnvironment, "CNI_PATH"},
		{"CHECK without netns", without("CHECK", "CNI_NETNS"), good, shim.CodeEnvironment, "CNI_NETNS"},
		{"DEL without id", without("DEL", "CNI_CONTAINERID"), good, shim.CodeEnvironment, "CNI_CONTAINERID"},
		{"unknown verb", with("CNI_COMMAND", "SING"), good, shim.CodeEnvironment, "SING"},
		{"bad id", with("CNI_CONTAINERID", "../x"), good, shim.CodeEnvironment, "CNI_CONTAINERID=../x"},
		{"bad ifname", with("CNI_IFNAME", "a/b"), good, shim.CodeEnvironment, "CNI_IFNAME=a/b"},
		{"long ifname", with("CNI_IFNAME", "sixteencharacter"), good, shim.CodeEnvironment, "CNI_IFNAME=sixteencharacter"},
		{"bad args", with("CNI_ARGS", "FOO=1"), good, shim.CodeEnvironment, "FOO"},
		{"netns is a file", with("CNI_NETNS", file), good, shim.CodeNetNS, file},
		{"netns is missing", with("CNI_NETNS", file+"x"), good, shim.CodeNetNS, file + "x"},
		{"netns is the node's", with("CNI_NETNS", n.host), good, shim.CodeNetNS, "node's own"},
		{"no JSON", env("ADD", "pod", ns), "{", shim.CodeDecode, ""},
		{"no name", env("ADD", "pod", ns), `{"cniVersion":"1.1.0"}`, shim.CodeConfig, "name"},
		{"bad name", env("ADD", "pod", ns), `{"cniVersion":"1.1.0","name":"a/b"}`, shim.CodeConfig, "a/b"},
		{"old version", env("ADD", "pod", ns), n.conf("0.2.0", ""), shim.CodeVersion, "0.2.0"},
		{"new version", env("ADD", "pod", ns), n.conf("2.0.0", ""), shim.CodeVersion, "2.0.0"},
		{"bad ips", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"ips":["10.0.0.300"]}`), shim.CodeConfig, "10.0.0.300"},
		{"foreign ips", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"ips":["8.8.8.8/24"]}`), shim.CodeConfig, "8.8.8.8"},
		{"bad mac", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"mac":"01:00:00:00:00:01"}`), shim.CodeConfig, "unicast"},
		{"bad protocol", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":1,"containerPort":1,"protocol":"icmp"}]}`), shim.CodeConfig, "icmp"},
		{"foreign ipRanges", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"ipRanges":[[{"subnet":"172.16.0.0/12"}]]}`), shim.CodeConfig, "no pool"},
		{"ipRanges without subnet", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"ipRanges":[[{}]]}`), shim.CodeConfig, "ipRanges[0][0].subnet"},
		{"ipRanges beyond the subnet", env("ADD", "pod", ns), n.conf("1.1.0", `,"runtimeConfig":{"ipRanges":[[{"subnet":"10.88.1.0/24","rangeEnd":"10.88.2.1"}]]}`), shim.CodeConfig, "10.88.2.1"},
		{"bad prevResult", env("ADD", "pod", ns), n.conf("1.1.0", `,"prevResult":{"cniVersion":"1.1.0","ips":"x"}`), shim.CodeDecode, "prevResult"},
		{"CHECK without prevResult", env("CHECK", "pod", ns), good, shim.CodeConfig, "prevResult"},
		{"CHECK of nothing", env("CHECK", "pod", ns), n.conf("1.1.0", `,"prevResult":{"cniVersion":"1.1.0"}`), shim.CodeUnknown, ""},
		{"GC without list", env("GC", "", ""), good, shim.CodeConfig, "valid-attachments"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, e := n.call(tc.env, tc.conf)
			if e == nil {
				t.Fatalf("success: %s", out)
			}
			if e.Code != tc.code || !strings.Contains(e.Msg+e.Details, tc.says) {
				t.Errorf("code %d %q %q, want %d with %q", e.Code, e.Msg, e.Details, tc.code, tc.says)
			}
			if n.net.Leases() != nil && len(n.net.Leases())+len(interfaces(t, ns)) != 0 {
				t.Errorf("left: %v, %v", n.net.Leases(), interfaces(t, ns))
			}
		})
	}
}

// TestRootCapabilities: what a runtime may ask for beside an interface.
func TestRootCapabilities(t *testing.T) {
	n := newNode(t)
	add := func(id, extra string) string {
		t.Helper()
		out, e := n.call(env("ADD", id, n.newNS()), n.conf("1.1.0", extra))
		if e != nil {
			t.Fatal(e)
		}
		var b bytes.Buffer
		if err := json.Compact(&b, out); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	for _, tc := range []struct{ extra, want string }{
		{`,"runtimeConfig":{"ips":["10.88.3.3/16","fd88::33"]}`, `"address":"10.88.3.3/32"`},
		{`,"args":{"cni":{"ips":["10.88.3.4"]}}`, `"address":"10.88.3.4/32"`},
		{`,"runtimeConfig":{"ips":["10.88.3.5"]},"args":{"cni":{"ips":["10.88.3.6"]}}`, `"address":"10.88.3.5/32"`},
		{`,"runtimeConfig":{"ipRanges":[[{"subnet":"10.88.4.0/24","rangeStart":"10.88.4.9"}]]}`, `"address":"10.88.4.9/32"`},
		{`,"runtimeConfig":{"ipRanges":[[{"subnet":"172.16.0.0/12"},{"subnet":"10.88.4.0/28"}],[{"subnet":"fd88::50/124"}]]}`, `"address":"fd88::50/128"`},
		{`,"runtimeConfig":{"mac":"0a:00:00:00:00:03"}`, `"mac":"0a:00:00:00:00:03"`},
		{`,"runtimeConfig":{"dns":{"servers":["10.96.0.10"],"searches":["svc"],"options":["ndots:5"]}}`, `"dns":{"nameservers":["10.96.0.10"],"options":["ndots:5"],"search":["svc"]}`},
		{`,"dns":{"nameservers":["9.9.9.9"]}`, `"dns":{"nameservers":["9.9.9.9"]}`},
		{`,"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"first0"}],"ips":[{"interface":0,"address":"1.2.3.4/24"}]}`, `"ips":[{"address":"1.2.3.4/24","interface":0},{"address":"10.88.0.5/32","gateway":"169.254.1.1","interface":2}`},
	} {
		if got := add(fmt.Sprintf("pod-%d", len(n.net.List())), tc.extra); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s does not have %s", tc.extra, got, tc.want)
		}
	}
}

// TestRootDaemonAway: DEL is written down and done before the daemon serves,
// STATUS and GC say that it is away.
func TestRootDaemonAway(t *testing.T) {
	n := newNode(t)
	ns := n.newNS()
	conf := n.conf("1.1.0", "")
	if _, e := n.call(env("ADD", "pod", ns), conf); e != nil {
		t.Fatal(e)
	}
	n.stop()
	for range 2 {
		if _, e := n.call(env("DEL", "pod", ""), conf); e != nil {
			t.Fatalf("DEL without daemon: %v", e)
		}
	}
	if _, e := n.call(env("STATUS", "", ""), conf); codeOf(e) != shim.CodeNotAvailable {
		t.Errorf("STATUS without daemon: %v", e)
	}
	files, err := filepath.Glob(filepath.Join(n.queue(), "*.json"))
	if err != nil || len(files) != 1 {
		t.Errorf("queue: %v, %v", files, err)
	}
	n.start()
	if leases := n.net.Leases(); len(leases) != 0 {
		t.Errorf("leases after the start: %v", leases)
	}
	if files, _ := filepath.Glob(filepath.Join(n.queue(), "*.json")); len(files) != 0 {
		t.Errorf("queue after the start: %v", files)
	}
}

// TestRootGarbageCollection keeps what is valid and what belongs to others.
func TestRootGarbageCollection(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"a", "b", "c"} {
		if _, e := n.call(env("ADD", id, n.newNS()), n.conf("1.1.0", "")); e != nil {
			t.Fatal(e)
		}
	}
	own := cni.Request{Key: cni.Key{ContainerID: "cri", IfName: "eth0"}, NetNS: n.newNS()}
	if _, err := n.net.Attach(t.Context(), own); err != nil {
		t.Fatal(err)
	}
	gc := n.conf("1.1.0", `,"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]`)
	for range 2 {
		if _, e := n.call(env("GC", "", ""), gc); e != nil {
			t.Fatal(e)
		}
	}
	var left []string
	for _, a := range n.net.List() {
		left = append(left, a.ContainerID)
	}
	if got := strings.Join(left, ","); got != "b,cri" {
		t.Errorf("left: %s, want b and cri", got)
	}
}

// TestRootHundredAtOnce adds and deletes a hundred pods at the same time.
func TestRootHundredAtOnce(t *testing.T) {
	n := newNode(t)
	const pods = 100
	var wg sync.WaitGroup
	var mu sync.Mutex // guards seen
	seen := map[string]string{}
	for i := range pods {
		id := fmt.Sprintf("pod-%d", i)
		ns := n.newNS()
		wg.Go(func() {
			out, e := n.call(env("ADD", id, ns), n.conf("1.1.0", ""))
			if e != nil {
				t.Errorf("%s: %v", id, e)
				return
			}
			var res struct {
				IPs []struct{ Address string } `json:"ips"`
			}
			if err := json.Unmarshal(out, &res); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range res.IPs {
				if other, taken := seen[ip.Address]; taken {
					t.Errorf("%s and %s both have %s", id, other, ip.Address)
				}
				seen[ip.Address] = id
			}
		})
	}
	wg.Wait()
	if len(seen) != 2*pods {
		t.Errorf("%d addresses, want %d", len(seen), 2*pods)
	}
	for i := range pods {
		wg.Go(func() {
			id := fmt.Sprintf("pod-%d", i)
			if _, e := n.call(env("DEL", id, ""), n.conf("1.1.0", "")); e != nil {
				t.Errorf("%s: %v", id, e)
			}
		})
	}
	wg.Wait()
	if leases := n.net.Leases(); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}
}
