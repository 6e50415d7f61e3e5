// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/link"
	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/shim"
	"github.com/nodeagent/nodeagent/dataplane"
)

// Dataplane is what the pod network needs of the data path. All three verbs
// are idempotent; Delete of the unknown is success.
type Dataplane interface {
	UpdateEndpoint(ctx context.Context, ep dataplane.Endpoint) error
	DeleteEndpoint(ctx context.Context, id string) error
	// PruneEndpoints deletes every endpoint whose id is not in keep.
	PruneEndpoints(ctx context.Context, keep []string) error
}

var _ Dataplane = (*dataplane.Dataplane)(nil)

// Deps are what the pod network works with.
type Deps struct {
	// DB is the daemon's database; the network owns the buckets "cni" and "cni-ipam".
	DB *bbolt.DB
	// Dataplane may be nil: then the kernel's routing alone carries packets, and
	// bandwidth and host ports have no effect.
	Dataplane Dataplane
	// HostNS is the path of the namespace of the host ends; empty means that of
	// this process.
	HostNS string
	// Tunnel is the device that leads to other nodes where the uplink alone does
	// not; while it exists its MTU is that of the pods' default routes. Empty: none.
	Tunnel string
	// Socket is the daemon's API, for the conflist; empty means shim.DefaultSocket.
	Socket string
	Log    *slog.Logger
	// Metrics may be nil: then none are kept.
	Metrics prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Network is the pod network of one node. Its verbs are safe for concurrent
// use between Start and Stop.
type Network struct {
	cfg  Config
	deps Deps
	dp   Dataplane
	log  *slog.Logger

	metrics *metrics
	book    *ipam.Book
	records *records
	locks   keyLock

	host *netns.NS
	wire *link.Wire

	// following is held while pods are given the MTU: of two looks at once the
	// older one could win.
	following sync.Mutex

	mu     sync.Mutex // guards what follows
	served bool       // between Start and Stop
	opened bool       // between Open and Stop
	cidrs  []netip.Prefix
	// wantMTU is what was asked for, mtu what new attachments get.
	wantMTU, mtu mtus

	// queue has the deletes that came while the daemon was away; queueLock is
	// held from Start to Open.
	queue     shim.Queue
	queueLock *shim.Lock

	// dead wakes the reaper; it has room for one signal.
	dead chan struct{}
	stop context.CancelFunc
	// done counts background work and verbs under way.
	done sync.WaitGroup
	// suspects are what reconciliation saw without a pod at its last look.
	suspects map[string]bool
	// failpoint is called before each step of a verb; tests fail or end it there.
	failpoint func(ctx context.Context, step string) error
}

// New returns a network that does nothing before Start.
func New(cfg Config, deps Deps) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cni configuration: %w", err)
	}
	if deps.DB == nil || deps.Log == nil {
		return nil, errors.New("cni: a database and a logger are needed")
	}
	if deps.Now == nil {
		deps.Now = time.Now
	}
	if deps.Socket == "" {
		deps.Socket = shim.DefaultSocket
	}
	if deps.HostNS == "" {
		deps.HostNS = "/proc/self/ns/net"
	}
	n := &Network{
		cfg: cfg, deps: deps, dp: deps.Dataplane, log: deps.Log,
		wantMTU:   mtus{cfg.MTU, cfg.RouteMTU},
		queue:     shim.Queue{Dir: cfg.QueueDir},
		book:      ipam.NewBook(deps.DB, cfg.Quarantine, deps.Now),
		records:   &records{db: deps.DB, all: map[Key]record{}, warm: map[uint64]Key{}},
		dead:      make(chan struct{}, 1),
		suspects:  map[string]bool{},
		failpoint: func(context.Context, string) error { return nil },
	}
	if n.dp == nil {
		n.dp = routingOnly{}
	}
	n.metrics = newMetrics(n)
	if deps.Metrics != nil {
		if err := deps.Metrics.Register(n.metrics); err != nil {
			return nil, fmt.Errorf("cni: register metrics: %w", err)
		}
	}
	return n, nil
}

// Start reads the records, finishes what a crash interrupted, tells the data
// path about the attachments that are in place, and prunes what has no owner.
// Every verb is refused with ErrNotReady before it has returned. Open completes
// it once the local API answers.
func (n *Network) Start(ctx context.Context) (retErr error) {
	if err := errors.Join(n.book.Load(), n.records.load()); err != nil {
		return err
	}
	if err := n.loadPools(); err != nil {
		return err
	}
	var err error
	if n.host, err = netns.Open(n.deps.HostNS); err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	if n.wire, err = link.Open(n.host); err != nil {
		return errors.Join(err, n.host.Close())
	}
	defer func() {
		if retErr != nil {
			n.wire.Close()
			retErr = errors.Join(retErr, n.closeQueue(), n.host.Close())
		}
	}()
	if err := n.resolveMTU(ctx); err != nil {
		return err
	}
	if err := n.recoverAll(ctx); err != nil {
		return err
	}
	if err := n.followMTU(ctx); err != nil {
		n.log.WarnContext(ctx, "pods keep the mtu they had", "err", err)
	}
	if err := n.openQueue(ctx); err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.done.Go(func() { n.reapLoop(run) })
	n.done.Go(func() { n.reconcileLoop(run) })
	n.done.Go(func() { n.mtuLoop(run) })
	n.mu.Lock()
	n.served = true
	n.mu.Unlock()
	return nil
}

// Stop refuses new verbs, waits for those under way and for the background
// work; pods keep their network.
func (n *Network) Stop(ctx context.Context) error {
	if n.stop == nil {
		return nil
	}
	n.mu.Lock()
	n.served, n.opened = false, false
	n.mu.Unlock()
	n.stop()
	idle := make(chan struct{})
	go func() {
		n.done.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-ctx.Done():
		return fmt.Errorf("stop the pod network: verbs are still under way: %w", context.Cause(ctx))
	}
	n.wire.Close()
	return errors.Join(n.closeQueue(), n.host.Close())
}

// enter begins a verb; leave ends it.
func (n *Network) enter() (leave func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.served {
		return nil, fmt.Errorf("%w: the daemon is starting or stopping", ErrNotReady)
	}
	n.done.Add(1)
	return n.done.Done, nil
}

// SetPodCIDRs gives the node its ranges: from the Node object, from the
// kubelet's UpdateRuntimeConfig or from configuration. They are remembered
// across a restart of the daemon. Addresses in ranges that are gone stay valid
// until their pods end. After an error the old ranges stay.
func (n *Network) SetPodCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	if len(cidrs) == 0 {
		return fmt.Errorf("%w: no pod CIDR", ErrInvalid)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(cidrs, n.cidrs) {
		return nil
	}
	if err := n.book.SetPool(ipam.DefaultPool, cidrs); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	n.cidrs = slices.Clone(cidrs)
	n.log.InfoContext(ctx, "pod cidrs set", "pod_cidrs", cidrs)
	err := n.deps.DB.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		v, err := json.Marshal(cidrs)
		if err != nil {
			return err
		}
		return root.Put([]byte(keyPodCIDRs), v)
	})
	if err != nil {
		return fmt.Errorf("remember pod CIDRs: %w", err)
	}
	return n.announce(ctx)
}

// PodCIDRs returns the node's ranges; none if they are not known yet.
func (n *Network) PodCIDRs() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.cidrs)
}

// keyPodCIDRs has the ranges of the last SetPodCIDRs.
const keyPodCIDRs = "podCIDRs"

// loadPools sets the configured pools, and the node's ranges: configured, else
// those that were last set.
func (n *Network) loadPools() error {
	for _, p := range n.cfg.Pools {
		if err := n.book.SetPool(p.Name, p.CIDRs); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.cidrs) > 0 {
		return nil // SetPodCIDRs came before Start
	}
	cidrs := slices.Clone(n.cfg.PodCIDRs)
	if len(cidrs) == 0 {
		err := n.deps.DB.View(func(tx *bbolt.Tx) error {
			v := tx.Bucket([]byte(bucket)).Get([]byte(keyPodCIDRs))
			if v == nil {
				return nil
			}
			return json.Unmarshal(v, &cidrs)
		})
		if err != nil {
			return fmt.Errorf("load pod CIDRs: %w", err)
		}
	}
	if err := n.book.SetPool(ipam.DefaultPool, cidrs); err != nil {
		return err
	}
	n.cidrs = cidrs
	return nil
}

// Status says if Attach can be served: nil, or ErrNotReady with the reason. An
// exhausted range is no reason: the node would be taken for broken and its
// running pods evicted; it is an error of Attach and a figure of Usage.
func (n *Network) Status(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case !n.served:
		return fmt.Errorf("%w: the daemon is starting or stopping", ErrNotReady)
	case len(n.cidrs) == 0:
		return fmt.Errorf("%w: the node has no pod CIDR yet", ErrNotReady)
	}
	return nil
}

// Usage returns the state of every range.
func (n *Network) Usage() []ipam.Usage { return n.book.Usage() }

// Leases returns all leases; the owner of each is an attachment's key.
func (n *Network) Leases() []ipam.Lease { return n.book.Leases() }

// Attachment is one attachment as List shows it.
type Attachment struct {
	Result
	Network string    `json:"network,omitempty"`
	Pod     Pod       `json:"pod,omitzero"`
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
}

// List returns all attachments, sorted by key.
func (n *Network) List() []Attachment {
	var out []Attachment
	for _, rec := range n.records.list() {
		out = append(out, Attachment{rec.Result, rec.Request.Network, rec.Request.Pod, string(rec.State), rec.Since})
	}
	slices.SortFunc(out, func(a, b Attachment) int { return compareKeys(a.Key, b.Key) })
	return out
}

// Lookup returns the attachment of a key that is in place.
func (n *Network) Lookup(k Key) (*Result, error) {
	rec, ok := n.records.get(k)
	if !ok || rec.State != stateReady {
		return nil, fmt.Errorf("%w: %s", ErrUnknown, k)
	}
	return &rec.Result, nil
}

// routingOnly is the data path of a node that has none but the kernel's.
type routingOnly struct{}

var _ Dataplane = routingOnly{}

func (routingOnly) UpdateEndpoint(context.Context, dataplane.Endpoint) error { return nil }
func (routingOnly) DeleteEndpoint(context.Context, string) error             { return nil }
func (routingOnly) PruneEndpoints(context.Context, []string) error           { return nil }
