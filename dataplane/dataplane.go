// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// ErrNotStarted says that the verb needs the kernel, and Start has not returned yet.
var ErrNotStarted = errors.New("data path not started")

// ErrPolicies says that it is not known yet which network policies isolate a pod.
var ErrPolicies = errors.New("network policies are not known")

// Deps are what the data path needs from others.
type Deps struct {
	Log *slog.Logger
	// Object returns the programs; nil: those that are built in.
	Object func() (*ebpf.CollectionSpec, error)
	// OnUpgrade is called before each step of an upgrade of maps; nil: nobody asks.
	OnUpgrade func(step string)
	// OnGrow is told of each map that was made larger, by its name; it must not
	// wait. nil: nobody asks.
	OnGrow func(name string, from, to uint32)
	// SweepEvery is the pause between two walks over the table of flows; 0: 15 s.
	SweepEvery time.Duration
	// Policies says that somebody will tell of network policies: until then no
	// new endpoint is let in whose isolation may depend on them.
	Policies bool
}

// Dataplane holds the desired state and makes the kernel agree with it. All
// methods may be called concurrently; Update and Delete are idempotent.
//
// After Start the kernel still works with what an earlier daemon left in the
// pinned maps. Updates are merged into it; only the Prune verbs, called once
// the caller knows its desired state to be complete, remove what is left over.
type Dataplane struct {
	cfg    Config
	deps   Deps
	log    *slog.Logger
	kernel *attach.Kernel
	eps    maps.Endpoints
	routes maps.Routes
	ups    maps.Uplinks
	flows  maps.Conntrack
	rates  maps.Rates

	sockets  maps.Sockets
	stats    maps.Stats
	affinity maps.Affinity
	mode     maps.Mode

	flowCount, affinityCount atomic.Uint32 // records, as of the last sweep
	flowsEvicted             atomic.Uint64 // records that were removed to make room
	portsShort               atomic.Bool   // flows found no port: the next sweep makes room
	room                     room          // the sweeper's own

	cancel context.CancelFunc
	wg     sync.WaitGroup
	// work wakes the goroutines: something on the host changed, endpoints came
	// or went, flows have to be forgotten.
	hostChanged chan struct{}
	podsChanged chan struct{}
	sweepNow    chan struct{}
	concerns    concerns // which changes of the host wake

	// mu guards the desired state of everything but services.
	mu        sync.Mutex
	epoch     uint32
	started   bool
	node      Node
	endpoints map[string]Endpoint
	owners    map[netip.Addr]string // address to endpoint id
	peers     map[string]Peer
	claims    map[netip.Prefix]string // which peer has a range
	host      attach.Host
	uplinks   map[int]string // attached, by index
	// nodeKnown and peersKnown: somebody said so, and what an earlier daemon
	// knew may go.
	nodeKnown, peersKnown bool
	xdp                   map[int]Acceleration // by index of the uplink
	tunnel                int                  // index of the overlay's device, 0: none
	underlay              netip.Addr
	underMTU              int                       // of the link below it
	under                 map[netip.Addr]maps.Under // of the peers behind the overlay
	peerRoutes            attach.PeerRoutes

	attached  map[int]bool // interfaces of pods with our programs
	handover  map[int]bool // those that still have the slower filter
	forgotten map[int]bool // those that are gone, or going
	purge     map[netip.Addr]bool
	limits    map[string]uint32 // endpoint id to slot of the bandwidth map
	pruned    bool              // somebody said which endpoints there are

	policies policies
	watchers watchers // its mu is taken after mu, if both

	// svcMu guards the services and their table. Taken after mu, if both.
	svcMu    sync.Mutex
	services map[types.NamespacedName]service.Object
	lost     map[lostBackend]bool // flows to them are to be forgotten
	svcNode  service.Node
	table    *table
	grown    map[string]uint32 // how often a map was made larger
	health   health
}

// New returns a data path that has not touched the kernel yet.
func New(cfg Config, deps Deps) (*Dataplane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.SweepEvery == 0 {
		deps.SweepEvery = sweepEvery
	}
	return &Dataplane{
		cfg:         cfg,
		deps:        deps,
		log:         deps.Log,
		policies:    newPolicies(),
		watchers:    watchers{all: map[*watcher]bool{}, wanted: make(chan struct{}, 1)},
		hostChanged: make(chan struct{}, 1),
		podsChanged: make(chan struct{}, 1),
		sweepNow:    make(chan struct{}, 1),
		endpoints:   map[string]Endpoint{},
		owners:      map[netip.Addr]string{},
		peers:       map[string]Peer{},
		uplinks:     map[int]string{},
		xdp:         map[int]Acceleration{},
		attached:    map[int]bool{},
		handover:    map[int]bool{},
		forgotten:   map[int]bool{},
		purge:       map[netip.Addr]bool{},
		limits:      map[string]uint32{},
		services:    map[types.NamespacedName]service.Object{},
		lost:        map[lostBackend]bool{},
		grown:       map[string]uint32{},
		health:      health{servers: map[types.NamespacedName]*healthServer{}},
	}, nil
}

// Start loads the programs into the network namespace that the process is in,
// and puts them in the place of those of an earlier daemon. Connections do not
// notice. It must be called from a thread of that namespace, once.
func (d *Dataplane) Start(ctx context.Context) (retErr error) {
	cookie, err := attach.HostCookie()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started {
		return errors.New("data path started twice")
	}
	d.kernel, err = attach.Load(d.options(cookie))
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, d.kernel.Close())
		}
	}()
	for _, name := range d.kernel.Converted {
		d.log.InfoContext(ctx, "map of another layout was carried over", "map", name)
	}
	for _, name := range d.kernel.Renewed {
		d.log.ErrorContext(ctx, "map of an earlier layout was made anew", "map", name)
	}
	d.openMaps()
	if err := d.stats.Init(); err != nil {
		return err
	}
	if err := errors.Join(d.eps.Index(), d.bumpEpoch()); err != nil {
		return err
	}
	if err := d.takeOverPolicies(); err != nil {
		return err
	}
	if err := d.takeOver(ctx); err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	deaf, err := attach.Watch(run, d.hostChanged, &d.concerns)
	if err != nil {
		cancel()
		return err
	}
	host, err := attach.ReadHost()
	if err == nil {
		err = d.syncHost(host)
	}
	if err == nil {
		err = d.kernel.Settle()
	}
	if err != nil {
		cancel()
		return err
	}
	d.cancel = cancel
	d.started = true
	d.wg.Go(func() { d.followHost(run, deaf) })
	d.wg.Go(func() { d.followPods(run) })
	d.wg.Go(func() { d.sweepFlows(run) })
	d.wg.Go(func() { d.followEvents(run) })
	d.wg.Go(func() { d.watchPorts(run) })
	return nil
}

// openMaps wraps the maps that are loaded.
func (d *Dataplane) openMaps() {
	d.eps = maps.NewEndpoints(d.kernel.Eps, d.kernel.DsrIds)
	d.routes = maps.NewRoutes(d.kernel.Routes, d.kernel.Ways)
	d.ups = maps.NewUplinks(d.kernel.Uplinks)
	d.flows = maps.NewConntrack(d.kernel.Ct, d.kernel.CtMade)
	d.rates = maps.NewRates(d.kernel.Rates)
	d.sockets = maps.NewSockets(d.kernel.SkUdp)
	d.stats = maps.NewStats(d.kernel.SvcStats)
	d.affinity = maps.NewAffinity(d.kernel.Aff)
}

// options are the constants and sizes that the configuration asks for.
func (d *Dataplane) options(cookie uint64) attach.Options {
	m := d.cfg.Maps
	return attach.Options{
		BPFFS:  d.cfg.BPFFS,
		Object: d.deps.Object,
		OnStep: d.deps.OnUpgrade,
		Sizes: map[string]uint32{
			"ct": m.Conntrack, "eps": m.Endpoints, "dsr_ids": m.Endpoints, "svc": m.Services, "be": m.Backends,
			"routes": m.Routes, "aff": m.Affinity, "rates": 2*m.Endpoints + 2, "svc_stats": d.cfg.ServiceOptions.MaxMetrics + 1,
			"profiles": 2 * m.Endpoints, "identities": m.Identities, "rules": m.Rules,
		},
		Constants: map[string]any{
			"cfg_services":    d.cfg.Services,
			"cfg_svc_stats":   d.cfg.ServiceOptions.Metrics,
			"cfg_svc_reset":   d.cfg.ServiceOptions.ResetConnections,
			"cfg_dsr":         d.cfg.DSR(),
			"cfg_host_cookie": cookie,
			"cfg_vni":         d.cfg.Tunnel.VNI,
			"cfg_tun_port":    maps.Port(d.cfg.Tunnel.Port),
			"cfg_tun_direct":  d.cfg.Tunnel.Direct,
			"cfg_snat_min":    d.cfg.SNATPorts.Min,
			"cfg_snat_max":    d.cfg.SNATPorts.Max,
		},
	}
}

// takeOver replaces the programs of an earlier daemon: sockets and pods.
// Interfaces that are gone are left for the next Prune.
func (d *Dataplane) takeOver(ctx context.Context) error {
	table, err := newTable(maps.NewServices(d.kernel.Svc, d.kernel.Be, d.kernel.Ranges))
	if err != nil {
		return err
	}
	table.resets = d.cfg.ServiceOptions.ResetConnections
	d.svcMu.Lock()
	d.table, d.svcNode = table, d.serviceNode()
	d.svcMu.Unlock()
	if err := d.enterMode(ctx); err != nil {
		return err
	}
	if err := d.attachSockets(); err != nil {
		return err
	}
	old, err := d.eps.All()
	if err != nil {
		return err
	}
	for addr, ep := range old {
		if ep.Host || d.attached[ep.IfIndex] {
			continue
		}
		if err := d.kernel.Pod(ep.IfIndex); err != nil {
			d.log.DebugContext(ctx, "endpoint of an earlier daemon has no link", "addr", addr, "if_index", ep.IfIndex, "err", err)
			continue
		}
		d.attached[ep.IfIndex] = true
		d.handover[ep.IfIndex] = true
	}
	return nil
}

func (d *Dataplane) attachSockets() error {
	if !d.cfg.Services || !d.cfg.SocketServices {
		return d.kernel.ForgetSockets()
	}
	cgroup := d.cfg.Cgroup
	if cgroup == "" {
		cgroup = attach.CgroupRoot()
	}
	if cgroup == "" {
		return errors.New("no cgroup v2 hierarchy: set cgroup, or turn socketServices off")
	}
	return d.kernel.Sockets(cgroup, d.cfg.ServiceOptions.Metrics)
}

// Stop ends what the daemon does; programs and maps stay in the kernel and go
// on working.
func (d *Dataplane) Stop(ctx context.Context) error {
	d.mu.Lock()
	if !d.started {
		d.mu.Unlock()
		return nil
	}
	d.started = false
	d.mu.Unlock()
	d.cancel()
	d.wg.Wait()
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	d.table = nil
	return errors.Join(d.health.stop(ctx), d.kernel.Close())
}

// Uninstall removes programs, maps and pins of all versions from the kernel:
// pods lose their network. It must not be called while a daemon runs.
func Uninstall(cfg Config) error {
	if err := errors.Join(attach.Uninstall(cfg.BPFFS), attach.DeleteTunnel(cfg.Tunnel.Device)); err != nil {
		return err
	}
	if err := os.Remove(filepath.Clean(cfg.BPFFS)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory of pins: %w", err)
	}
	return nil
}
