// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrLacking says that the kernel has not got a feature.
var ErrLacking = errors.New("the kernel has not got it")

// Feature is something of the kernel's that the data path uses.
type Feature struct {
	Name string
	// Lack says what is not there without it.
	Lack string
	// Needed: nothing works without it.
	Needed bool
	probe  func() error
}

// Probe asks the kernel. It returns nil when the feature is there,
// ErrLacking when it is not, and another error when it did not say: EPERM
// without the capability to ask. Nothing stays in the kernel.
func (f Feature) Probe() error {
	err := f.probe()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return fmt.Errorf("%w: %w", ErrLacking, err)
	}
	return err
}

const noNetwork = "pods have no network"

// Features are all that the programs use, those that nothing works without first.
func Features() []Feature {
	helper := func(t ebpf.ProgramType, fn asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(t, fn) }
	}
	mapType := func(t ebpf.MapType) func() error { return func() error { return features.HaveMapType(t) } }
	program := func(t ebpf.ProgramType) func() error { return func() error { return features.HaveProgramType(t) } }
	return []Feature{
		{"programs at links (sched_cls)", noNetwork, true, program(ebpf.SchedCLS)},
		{"bpf_redirect_peer", noNetwork, true, helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{"bpf_redirect_neigh", noNetwork, true, helper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{"bpf_fib_lookup", noNetwork, true, helper(ebpf.SchedCLS, asm.FnFibLookup)},
		{"bpf_check_mtu", noNetwork, true, helper(ebpf.SchedCLS, asm.FnCheckMtu)},
		{"bpf_loop", noNetwork, true, helper(ebpf.SchedCLS, asm.FnLoop)},
		{"bpf_ktime_get_coarse_ns", noNetwork, true, helper(ebpf.SchedCLS, asm.FnKtimeGetCoarseNs)},
		{"hash maps that forget (lru_hash)", noNetwork, true, mapType(ebpf.LRUHash)},
		{"prefix maps (lpm_trie)", noNetwork, true, mapType(ebpf.LPMTrie)},
		{"ring buffers", noNetwork, true, mapType(ebpf.RingBuf)},
		{"storage of sockets (sk_storage)", noNetwork, true, mapType(ebpf.SkStorage)},
		{
			"programs at connect() (cgroup_sock_addr)",
			"set dataplane.socketServices: false; processes of the node then reach no services", false, program(ebpf.CGroupSockAddr),
		},
		{"programs at sockets (sock_ops)", "bytes of TCP connections to services are not counted", false, program(ebpf.SockOps)},
		{"tcx", "filters are used: 3 to 5 % fewer round trips between pods; normal before Linux 6.6", false, haveTCX},
	}
}

// haveTCX attaches to an interface that cannot be: only a kernel that knows tcx
// looks for it.
func haveTCX() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // nothing refers to it
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: p, Attach: ebpf.AttachTCXIngress})
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil
	case err == nil:
		return l.Close()
	default:
		return err
	}
}
