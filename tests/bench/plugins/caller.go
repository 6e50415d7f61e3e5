// SPDX-License-Identifier: Apache-2.0

// Package plugins measures CNI plugins as a container runtime calls them, and
// gives other areas pods: network namespaces that a plugin attached. The calls
// are made by a process in the node (Main), which Caller holds.
package plugins

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
)

// Command is argv[1] of the process that calls plugins.
const Command = "call-plugins"

// request is one line of the process's input.
type request struct {
	// Verb is add, del or version; IDs name the pods, at most Width at once.
	Verb  string   `json:"verb"`
	IDs   []string `json:"ids"`
	Width int      `json:"width"`
}

// answer is what comes back, a pod's at the place of its id.
type answer struct {
	Took  []time.Duration `json:"took"`
	Addrs [][]string      `json:"addrs"`
	// All is how long all of them took together.
	All time.Duration `json:"all"`
	Err string        `json:"err,omitempty"`
}

// Main answers requests about the network of a conflist: call-plugins CONFLIST
// BIN-DIRECTORY...
func Main(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("usage: bench call-plugins CONFLIST BIN-DIRECTORY [MORE]")
	}
	list, err := libcni.ConfListFromFile(args[0])
	if err != nil {
		return fmt.Errorf("read conflist: %w", err)
	}
	c := &calls{list: list, cni: libcni.NewCNIConfigWithCacheDir(args[1:], "/run/cni-cache", nil), bins: args[1:]}
	return c.attend(ctx, os.Stdin, os.Stdout)
}

type calls struct {
	list *libcni.NetworkConfigList
	cni  *libcni.CNIConfig
	bins []string
}

func (c *calls) attend(ctx context.Context, in io.Reader, out io.Writer) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	enc := json.NewEncoder(out)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := enc.Encode(c.answer(ctx, &r)); err != nil {
			return fmt.Errorf("write answer: %w", err)
		}
	}
	return lines.Err()
}

func (c *calls) answer(ctx context.Context, r *request) *answer {
	a := &answer{Took: make([]time.Duration, len(r.IDs)), Addrs: make([][]string, len(r.IDs))}
	var errs []error
	if r.Verb == "add" {
		for _, id := range r.IDs { // not the plugin's work
			errs = append(errs, ipNetns(ctx, "add", id))
		}
	}
	errs = append(errs, c.each(ctx, r, a))
	if r.Verb == "del" {
		for _, id := range r.IDs {
			errs = append(errs, ipNetns(ctx, "delete", id))
		}
	}
	if err := errors.Join(errs...); err != nil {
		a.Err = err.Error()
	}
	return a
}

func (c *calls) each(ctx context.Context, r *request, a *answer) error {
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(r.IDs))
		slot = make(chan struct{}, max(1, r.Width))
	)
	begin := time.Now()
	for i, id := range r.IDs {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			start := time.Now()
			a.Addrs[i], errs[i] = c.call(ctx, r.Verb, id)
			a.Took[i] = time.Since(start)
		})
	}
	wg.Wait()
	a.All = time.Since(begin)
	return errors.Join(errs...)
}

func (c *calls) call(ctx context.Context, verb, id string) ([]string, error) {
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: filepath.Join("/run/netns", id), IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", id}, {"K8S_POD_INFRA_CONTAINER_ID", id},
	}}
	switch verb {
	case "add":
		r, err := c.cni.AddNetworkList(ctx, c.list, rt)
		if err != nil {
			return nil, fmt.Errorf("ADD %s: %w", id, err)
		}
		return addresses(r)
	case "del":
		if err := c.cni.DelNetworkList(ctx, c.list, rt); err != nil {
			return nil, fmt.Errorf("DEL %s: %w", id, err)
		}
		return nil, nil
	default:
		return nil, c.version(ctx)
	}
}

// version runs the first plugin of the list for nothing but its version: what
// is left is what starting the program costs.
func (c *calls) version(ctx context.Context) error {
	path := filepath.Join(c.bins[0], c.list.Plugins[0].Network.Type)
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("VERSION: %w: %s", err, out)
	}
	return nil
}

func addresses(r types.Result) ([]string, error) {
	v, err := r.GetAsVersion(cnitypes.ImplementedSpecVersion)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	res, err := cnitypes.GetResult(v)
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	var out []string
	for _, ip := range res.IPs {
		out = append(out, ip.Address.IP.String())
	}
	return out, nil
}

func ipNetns(ctx context.Context, verb, id string) error {
	out, err := exec.CommandContext(ctx, "ip", "netns", verb, id).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip netns %s %s: %w: %s", verb, id, err, out)
	}
	return nil
}
