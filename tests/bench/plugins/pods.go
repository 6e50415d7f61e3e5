// SPDX-License-Identifier: Apache-2.0

package plugins

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Caller calls the plugins of one network in a box.
type Caller struct {
	box *lab.Box
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err bytes.Buffer
}

const conflist = "/etc/cni/bench/10-bench.conflist"

// Agent calls nodeagent's plugin.
func Agent(r *lab.Run, b *lab.Box) (*Caller, error) {
	return newCaller(r, b, `{"cniVersion": "1.1.0", "name": "bench", "plugins": [{"type": "nodeagent-cni"}]}`)
}

// Bridge calls bridge, host-local and portmap, as containerd would without an
// agent; masquerading puts the kernel's conntrack into the way, as a node with
// kube-proxy has it.
func Bridge(r *lab.Run, b *lab.Box, cidr netip.Prefix) (*Caller, error) {
	return newCaller(r, b, fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni-ipam"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, cidr))
}

func newCaller(r *lab.Run, b *lab.Box, config string) (*Caller, error) {
	if err := b.Write(conflist, []byte(config)); err != nil {
		return nil, fmt.Errorf("write conflist: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &Caller{box: b, cmd: exec.Command(self, Command, conflist, r.Bin, r.Tools)} //nolint:noctx // ends with its input
	if strings.Contains(config, "host-local") {
		c.cmd = exec.Command(self, Command, conflist, r.Tools, r.Bin) //nolint:noctx // as above
	}
	c.cmd.Stderr = &c.err
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewScanner(out)
	c.out.Buffer(nil, 1<<20)
	return c, b.Start(c.cmd, "")
}

// Close ends the process; pods stay until the box ends.
func (c *Caller) Close() error {
	err := c.in.Close()
	if waitErr := c.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("caller of plugins: %w: %s", waitErr, bytes.TrimSpace(c.err.Bytes())))
	}
	return err
}

func (c *Caller) ask(r request) (*answer, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if _, err := c.in.Write(append(data, '\n')); err != nil {
		return nil, fmt.Errorf("ask for %s: %w", r.Verb, err)
	}
	if !c.out.Scan() {
		return nil, fmt.Errorf("%s in %s: no answer: %w", r.Verb, c.box.Name, errors.Join(c.out.Err(), c.Close()))
	}
	a := &answer{}
	if err := json.Unmarshal(c.out.Bytes(), a); err != nil {
		return nil, fmt.Errorf("%s: read answer: %w", r.Verb, err)
	}
	if a.Err != "" {
		return nil, fmt.Errorf("%s in %s: %s", r.Verb, c.box.Name, a.Err)
	}
	return a, nil
}

// Pod is an attached network namespace.
type Pod struct {
	Box *lab.Box
	// NetNS is its path in the box.
	NetNS string
	// Addr is its IPv4 address.
	Addr netip.Addr
}

// Add makes a pod and says how long the plugin took.
func (c *Caller) Add(id string) (Pod, time.Duration, error) {
	a, err := c.ask(request{Verb: "add", IDs: []string{id}})
	if err != nil {
		return Pod{}, 0, err
	}
	p := Pod{Box: c.box, NetNS: filepath.Join("/run/netns", id)}
	for _, s := range a.Addrs[0] {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return p, 0, fmt.Errorf("address of %s: %w", id, err)
		}
		if addr.Is4() {
			p.Addr = addr
		}
	}
	if !p.Addr.IsValid() {
		return p, 0, fmt.Errorf("%s has no IPv4 address: %v", id, a.Addrs[0])
	}
	return p, a.Took[0], nil
}
