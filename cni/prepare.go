// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nodeagent/nodeagent/cni/link"
	"github.com/nodeagent/nodeagent/cni/netns"
)

// Change is a setting of the host namespace that Prepare changed.
type Change struct {
	// Name is that of sysctl, such as "net.ipv4.ip_forward".
	Name     string `json:"name"`
	From, To string
}

// Prepare sets what the host namespace needs to carry pods' packets and says
// what it changed; what is right already is left alone. It is a step of its own
// because it is the only thing nodeagent does to the host's namespace as a
// whole.
//
//   - forwarding in both families;
//   - accept_ra=2 on uplinks that accept router advertisements, because IPv6
//     forwarding would make the kernel ignore them and the node lose its route;
//   - strict reverse path filtering off for all (loose stays): the kernel takes
//     the stricter of "all" and the interface, and answers that the data path
//     forwards do not come in by the route that leads back.
func (n *Network) Prepare(ctx context.Context) ([]Change, error) {
	host, err := netns.Open(n.deps.HostNS)
	if err != nil {
		return nil, fmt.Errorf("prepare the host: %w", err)
	}
	defer host.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	wire, err := link.Open(host)
	if err != nil {
		return nil, fmt.Errorf("prepare the host: %w", err)
	}
	defer wire.Close()
	uplinks, err := wire.Uplinks(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare the host: %w", err)
	}
	var changes []Change
	err = host.Do(func() error {
		var errs []error
		set := func(path, to string, when func(string) bool) {
			change, err := setSysctl(path, to, when)
			if change != nil {
				changes = append(changes, *change)
			}
			errs = append(errs, err)
		}
		for _, u := range uplinks {
			set("net/ipv6/conf/"+u.Name+"/accept_ra", "2", func(v string) bool { return v == "1" })
		}
		set("net/ipv4/ip_forward", "1", func(v string) bool { return v != "1" })
		set("net/ipv6/conf/all/forwarding", "1", func(v string) bool { return v != "1" })
		set("net/ipv4/conf/all/rp_filter", "0", func(v string) bool { return v == "1" })
		return errors.Join(errs...)
	})
	for _, c := range changes {
		n.log.InfoContext(ctx, "host setting changed", "sysctl", c.Name, "from", c.From, "to", c.To)
	}
	if err != nil {
		return changes, fmt.Errorf("prepare the host: %w", err)
	}
	return changes, nil
}

// setSysctl writes a setting of the thread's namespace if when says so of its
// value. A kernel that does not have it (no IPv6) is success.
func setSysctl(path, to string, when func(string) bool) (*Change, error) {
	file := "/proc/sys/" + path
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // nothing changed, nothing wrong
	}
	if err != nil {
		return nil, err
	}
	from := strings.TrimSpace(string(b))
	if !when(from) {
		return nil, nil //nolint:nilnil // nothing changed, nothing wrong
	}
	if err := os.WriteFile(file, []byte(to), 0); err != nil {
		return nil, err
	}
	return &Change{Name: strings.ReplaceAll(path, "/", "."), From: from, To: to}, nil
}
