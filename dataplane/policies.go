// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	dpmaps "github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/policy"
)

// policyWait is how long a new pod waits for what its isolation depends on.
const policyWait = 10 * time.Second

// policies are what isolates endpoints, and what of it the kernel has.
type policies struct {
	// mu is taken before Dataplane.mu, if both.
	mu    sync.Mutex
	state *policy.State
	// complete: all objects have been told once.
	complete bool
	// changed is closed, and made anew, when objects change.
	changed chan struct{}
	maps    dpmaps.Policies
	// written is what the kernel has.
	written policy.Tables
}

func newPolicies() policies {
	return policies{state: policy.NewState(), changed: make(chan struct{})}
}

// takeOverPolicies reads what an earlier daemon wrote: it is in force until
// everything is known again. The caller holds mu.
func (d *Dataplane) takeOverPolicies() error {
	p := &d.policies
	p.maps = dpmaps.NewPolicies(d.kernel.DatapathMaps)
	var err error
	if p.written, err = p.maps.All(); err != nil {
		return err
	}
	return p.maps.Guard(d.cfg.Policies && d.deps.Policies && len(p.written.Profiles) > 0)
}

// ReplacePolicyObjects gives everything that network policy depends on; what is
// not among it is gone.
func (d *Dataplane) ReplacePolicyObjects(ctx context.Context, all policy.Objects) error {
	return d.changePolicies(ctx, true, func(s *policy.State) { s.Replace(all) })
}

// UpdatePolicyObjects gives what changed, and the names of what is gone.
func (d *Dataplane) UpdatePolicyObjects(ctx context.Context, changed policy.Objects, gone policy.Names) error {
	return d.changePolicies(ctx, false, func(s *policy.State) { s.Update(changed, gone) })
}

func (d *Dataplane) changePolicies(ctx context.Context, whole bool, change func(*policy.State)) error {
	p := &d.policies
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p.state)
	p.complete = p.complete || whole
	close(p.changed)
	p.changed = make(chan struct{})
	return d.compilePolicies(ctx, nil)
}

// awaitPolicies returns when what isolates an endpoint is known. One that the
// data path has already keeps what is in force.
func (d *Dataplane) awaitPolicies(ctx context.Context, ep Endpoint) error {
	if !d.cfg.Policies || !d.deps.Policies || d.hasEndpoint(ep) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, policyWait)
	defer cancel()
	for {
		d.policies.mu.Lock()
		known := d.policies.complete && d.policies.state.Known(podOf(ep))
		complete, changed := d.policies.complete, d.policies.changed
		d.policies.mu.Unlock()
		if known {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if !complete {
				return fmt.Errorf("%w: no source has told all of them yet", ErrPolicies)
			}
			return fmt.Errorf("%w: its namespace has some, and nobody told of pod %s", ErrPolicies, podOf(ep))
		}
	}
}

// hasEndpoint reports whether all of an endpoint's addresses lead to its link
// already, or the replay of an earlier daemon's endpoints has begun anew.
func (d *Dataplane) hasEndpoint(ep Endpoint) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started || slices.Contains(d.kernel.Renewed, "eps") && !d.pruned {
		return true
	}
	for _, a := range ep.Addrs {
		if have, ok, err := d.eps.Get(a); err != nil || !ok || have.IfIndex != ep.IfIndex {
			return false
		}
	}
	return true
}

func podOf(ep Endpoint) types.NamespacedName {
	return types.NamespacedName{Namespace: ep.Namespace, Name: ep.Name}
}

// compilePolicies makes the kernel agree with the objects, and with an endpoint
// that is about to be. The caller holds policies.mu, and not mu.
func (d *Dataplane) compilePolicies(ctx context.Context, coming *Endpoint) error {
	p := &d.policies
	if !d.cfg.Policies || !p.complete || p.state.Policies() == 0 && len(p.written.Profiles) == 0 {
		return nil
	}
	d.mu.Lock()
	local := slices.Collect(maps.Values(d.endpoints))
	d.mu.Unlock()
	if coming != nil {
		local = append(local, *coming)
	}
	locals := map[types.NamespacedName][]netip.Addr{}
	for _, ep := range local {
		locals[podOf(ep)] = ep.Addrs
	}
	p.state.SetLocals(locals)
	begin := time.Now()
	want := policy.Compile(p.state)
	if !d.cfg.Services && len(want.Profiles) > 0 {
		aliasLinks(want, local)
	}
	compiled := time.Since(begin)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	err := d.writePolicies(want)
	d.log.DebugContext(ctx, "policies compiled", "policies", p.state.Policies(), "isolated", len(want.Profiles),
		"identities", len(want.Identities), "rules", len(want.Rules), "compiled_in", compiled, "took", time.Since(begin))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: %w: raise dataplane.maps", ErrFull, err)
	}
	return err
}

// aliasLinks lets pods be known by their links: kube-proxy gives some of their
// packets an address of the node's.
func aliasLinks(t policy.Tables, local []Endpoint) {
	for _, ep := range local {
		for _, a := range ep.Addrs {
			t.Alias(a, dpmaps.LinkAddr(ep.IfIndex, a.Is4()))
		}
	}
}

// writePolicies writes the differences in an order in which no packet meets
// less than one of the two states: rules, then who is who, then who is isolated
// by them; and what is not needed any more the other way round. The identifiers
// of profiles change with their rules, so an endpoint goes from its old rules
// to its new ones at once.
func (d *Dataplane) writePolicies(want policy.Tables) error {
	p := &d.policies
	have := p.written
	var rules []policy.Rule
	for r := range want.Rules {
		if _, ok := have.Rules[r]; !ok {
			rules = append(rules, r)
		}
	}
	if err := p.maps.PutRules(rules); err != nil {
		return errors.Join(err, d.rereadPolicies())
	}
	errs := []error{
		p.maps.PutIdentities(differences(want.Identities, have.Identities)),
		p.maps.PutProfiles(differences(want.Profiles, have.Profiles)),
	}
	if len(want.Profiles) > 0 {
		errs = append(errs, p.maps.Guard(true))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, d.rereadPolicies())
	}
	errs = append(errs, prune(have.Profiles, want.Profiles, p.maps.DeleteProfile),
		prune(have.Identities, want.Identities, p.maps.DeleteIdentity), prune(have.Rules, want.Rules, p.maps.DeleteRule))
	if len(want.Profiles) == 0 {
		errs = append(errs, p.maps.Guard(false))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, d.rereadPolicies())
	}
	p.written = want
	return nil
}

// rereadPolicies finds out what is in the kernel after a write that failed.
func (d *Dataplane) rereadPolicies() (err error) {
	d.policies.written, err = d.policies.maps.All()
	return err
}

// differences are the entries of want that have does not hold as they are.
func differences[K, V comparable](want, have map[K]V) map[K]V {
	out := map[K]V{}
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			out[k] = v
		}
	}
	return out
}

// prune deletes what is not wanted.
func prune[K comparable, V any](have, want map[K]V, del func(K) error) error {
	var errs []error
	for k := range have {
		if _, ok := want[k]; !ok {
			errs = append(errs, del(k))
		}
	}
	return errors.Join(errs...)
}

// ExplainPolicy says what policies make of a new flow between two addresses.
func (d *Dataplane) ExplainPolicy(src, dst netip.Addr, protocol uint8, port uint16) policy.Explanation {
	d.policies.mu.Lock()
	defer d.policies.mu.Unlock()
	return d.policies.state.Explain(src, dst, protocol, port)
}

// PodAddrs are the addresses of a pod that policies know of.
func (d *Dataplane) PodAddrs(pod types.NamespacedName) []netip.Addr {
	d.policies.mu.Lock()
	defer d.policies.mu.Unlock()
	return d.policies.state.PodAddrs(pod)
}

// ListPolicies says of every policy whom it isolates.
func (d *Dataplane) ListPolicies() []policy.Summary {
	d.policies.mu.Lock()
	defer d.policies.mu.Unlock()
	return d.policies.state.List()
}
