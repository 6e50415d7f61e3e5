// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/bpf"
)

// programs are those that meet packets, by where.
func programs(o *bpf.DatapathObjects) map[bpf.DatapathHook]*ebpf.Program {
	return map[bpf.DatapathHook]*ebpf.Program{
		bpf.DatapathHookHOOK_POD:   o.FromPod,
		bpf.DatapathHookHOOK_NET:   o.FromNet,
		bpf.DatapathHookHOOK_TUN:   o.FromTun,
		bpf.DatapathHookHOOK_TOPOD: o.ToPod,
		bpf.DatapathHookHOOK_TONET: o.ToNet,
	}
}

// relaysOf are the programs that stand in for them during an upgrade.
func relaysOf(o *bpf.DatapathObjects) map[bpf.DatapathHook]*ebpf.Program {
	return map[bpf.DatapathHook]*ebpf.Program{
		bpf.DatapathHookHOOK_POD:   o.RelayFromPod,
		bpf.DatapathHookHOOK_NET:   o.RelayFromNet,
		bpf.DatapathHookHOOK_TUN:   o.RelayFromTun,
		bpf.DatapathHookHOOK_TOPOD: o.RelayToPod,
		bpf.DatapathHookHOOK_TONET: o.RelayToNet,
	}
}

// hookNames are the programs' names in the kernel, the same in every layout.
func hookNames() map[string]bpf.DatapathHook {
	return map[string]bpf.DatapathHook{
		"from_pod": bpf.DatapathHookHOOK_POD,
		"from_net": bpf.DatapathHookHOOK_NET,
		"from_tun": bpf.DatapathHookHOOK_TUN,
		"to_pod":   bpf.DatapathHookHOOK_TOPOD,
		"to_net":   bpf.DatapathHookHOOK_TONET,
	}
}

// attachment is a program of ours, or of an earlier daemon's, on a link.
type attachment struct {
	hook    bpf.DatapathHook
	relay   bool
	prog    *ebpf.Program
	link    link.Link // nil: a filter
	replace func(*ebpf.Program) error
}

func closeAll(as []attachment) {
	for _, a := range as {
		a.prog.Close() //nolint:errcheck // the kernel keeps what is attached
		if a.link != nil {
			a.link.Close() //nolint:errcheck // as above
		}
	}
}

// attachments finds the programs that meet packets: at pinned links, and in
// filters of the interfaces of the thread's network namespace.
func (k *Kernel) attachments() (out []attachment, retErr error) {
	defer func() {
		if retErr != nil {
			closeAll(out)
		}
	}()
	pins, err := os.ReadDir(filepath.Join(k.dir, "links"))
	if err != nil {
		return nil, fmt.Errorf("read directory of pins: %w", err)
	}
	for _, e := range pins {
		l, err := link.LoadPinnedLink(k.linkPin(e.Name()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("open pinned link %s: %w", e.Name(), err)
		}
		info, err := l.Info()
		if err != nil || info.TCX() == nil || info.TCX().Ifindex == 0 {
			// Another kind of hook, or its interface is gone.
			if err := errors.Join(err, l.Close()); err != nil {
				return out, err
			}
			continue
		}
		a, ok := attached(info.Program)
		if !ok {
			l.Close() //nolint:errcheck // not ours to touch
			continue
		}
		a.link, a.replace = l, l.Update
		out = append(out, a)
	}
	return appendFilters(out)
}

func appendFilters(out []attachment) ([]attachment, error) {
	h := &netlink.Handle{}
	links, err := retry(h.LinkList)
	if err != nil {
		return out, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := retry(func() ([]netlink.Filter, error) { return h.FilterList(l, parent) })
			if err != nil {
				continue // the interface went away
			}
			for _, f := range filters {
				b, ok := f.(*netlink.BpfFilter)
				if !ok || b.Attrs().Handle != filterHandle {
					continue
				}
				if a, ok := attached(ebpf.ProgramID(b.Id)); ok {
					idx := l.Attrs().Index
					a.replace = func(p *ebpf.Program) error { return replaceFilter(idx, parent, p) }
					out = append(out, a)
				}
			}
		}
	}
	return out, nil
}

// attached opens a program by its id, and tells by its name what it is for.
func attached(id ebpf.ProgramID) (attachment, bool) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return attachment{}, false
	}
	info, err := p.Info()
	if err == nil {
		name, relay := strings.CutPrefix(info.Name, "relay_")
		if hook, ok := hookNames()[name]; ok {
			return attachment{hook: hook, relay: relay, prog: p}, true
		}
	}
	p.Close() //nolint:errcheck // not one of ours
	return attachment{}, false
}
