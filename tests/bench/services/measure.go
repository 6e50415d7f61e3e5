// SPDX-License-Identifier: Apache-2.0

package services

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
	"github.com/nodeagent/nodeagent/tests/bench/traffic"
)

// Measure compares nodeagent with kube-proxy in both modes, a node each, and
// lets one more node send from outside.
func (o *Options) Measure(ctx context.Context, r *lab.Run) (retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "boxes", "--nodes", "9")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, l.Close()) }()
	if err := o.traffic(ctx, r, l); err != nil {
		return err
	}
	return o.programming(ctx, r, l)
}

func (o *Options) traffic(ctx context.Context, r *lab.Run, l *lab.Lab) (retErr error) {
	var sides []*side
	defer func() {
		for _, s := range sides {
			retErr = errors.Join(retErr, s.close())
		}
	}()
	for i, name := range []string{lab.Nodeagent, nft, ipt} {
		s, err := newSide(ctx, name, l.Nodes()[i], i+1)
		if err != nil {
			return err
		}
		sides = append(sides, s)
		if err := s.start(r); err != nil {
			return err
		}
		if err := s.pods(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		err = s.api.put(s.box.Name, nil, service{name: "target", addr: target, nodePort: nodePort, backends: []netip.Addr{s.pod}})
		if err != nil {
			return err
		}
	}
	outside, err := traffic.Drive(l.Nodes()[3], "")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, outside.Close()) }()
	took := sides
	for stage, n := range []int{o.Few, o.Many, o.Most} {
		if n > o.Many {
			took = sides[:1]
		}
		if took, err = filled(ctx, took, n-1, outside); err != nil {
			return fmt.Errorf("with %d services: %w", n, err)
		}
		if err := o.with(ctx, r, [2]int{stage, n}, took, outside); err != nil {
			return fmt.Errorf("with %d services: %w", n, err)
		}
	}
	return nil
}

// filled fills all sides up to n services. A peer that does not get there in
// time is left out from then on.
func filled(ctx context.Context, sides []*side, n int, outside *traffic.Driver) ([]*side, error) {
	var out []*side
	for _, s := range sides {
		err := s.fillTo(ctx, n)
		if err == nil {
			_, err = s.from.Measure(traffic.Reach, netip.AddrPortFrom(target, front), patience)
		}
		if err == nil {
			_, err = outside.Measure(traffic.Reach, netip.AddrPortFrom(s.addr, nodePort), patience)
		}
		switch {
		case err == nil:
			out = append(out, s)
		case ctx.Err() != nil || s.name == lab.Nodeagent:
			return nil, fmt.Errorf("%s: %w", s.name, err)
		default:
			fmt.Fprintf(os.Stderr, "  left out: %s, %d services: %v\n", s.name, n+1, err)
		}
	}
	return out, nil
}

// with measures with as many services present, the measured one included, as
// the stage, the first of at, has; that is the second.
func (o *Options) with(ctx context.Context, r *lab.Run, at [2]int, sides []*side, outside *traffic.Driver) error {
	n, inside := at[1], netip.AddrPortFrom(target, front)
	for i := range o.Rounds {
		for _, s := range sides {
			toPodItself, err1 := s.from.Measure(traffic.CRR, netip.AddrPortFrom(s.pod, direct), o.Turn)
			through, err2 := s.from.Measure(traffic.CRR, inside, o.Turn)
			node, err3 := outside.Measure(traffic.CRR, netip.AddrPortFrom(s.addr, nodePort), o.Turn)
			if err := errors.Join(err1, err2, err3, ctx.Err()); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			r.Area.Add(groupInside, crr(n), "1/s", s.name, through)
			r.Area.Add(groupInside, toPod(n), "", s.name, through/toPodItself)
			r.Area.Add(GroupOutside, crr(n), "1/s", s.name, node)
		}
		r.Progress(fmt.Sprintf("%d services, round", n), i+1, o.Rounds)
	}
	for i := range o.Adds {
		for _, s := range sides {
			if err := s.addOne(ctx, r, at, i); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		r.Progress(fmt.Sprintf("one more than %d services", n), i+1, o.Adds)
	}
	return ctx.Err()
}

// apart is the time between the events of a slice and of its service: what an
// agent does to gather events is not what is asked.
const apart = 50 * time.Millisecond

// addOne adds a service and waits until a connection through it is made.
func (s *side) addOne(ctx context.Context, r *lab.Run, at [2]int, i int) error {
	addr := netip.AddrFrom4([4]byte{10, 96, byte(at[0] + 1), byte(i + 1)})
	var begin time.Time
	err := s.api.put(s.box.Name, func() error {
		err := lab.Pause(ctx, apart)
		begin = time.Now()
		return err
	}, service{name: fmt.Sprintf("more-%d-%d", at[0], i), addr: addr, backends: []netip.Addr{s.pod}})
	if err != nil {
		return err
	}
	if _, err := s.from.Measure(traffic.Reach, netip.AddrPortFrom(addr, front), patience); err != nil {
		return err
	}
	r.Area.Duration(groupTime, oneMore(at[1]), s.name, time.Since(begin))
	return nil
}

// coldRun starts a daemon with everything to program there already.
type coldRun struct {
	name string
	// services of endpoints each, as often as times.
	services, endpoints, times int
	// memory asks for the daemon's, when it has come to rest.
	memory bool
}

// calm is how long a daemon is left alone before its memory counts; nodeagent
// gives back what its start needed after 20 s.
const calm = 25 * time.Second

// programming starts daemons on nodes that have nothing yet.
func (o *Options) programming(ctx context.Context, r *lab.Run, l *lab.Lab) error {
	runs := []coldRun{
		{lab.Nodeagent, o.Many, 5, 1, false},
		{nft, o.Many, 5, 1, false},
		{ipt, o.Many, 5, 1, false},
		{lab.Nodeagent, o.Most, 5, o.Colds, false},
		{lab.Nodeagent, min(10000, o.Most), 10, 1, true},
	}
	const first = 5 // the nodes before have pods
	for i, c := range runs {
		s, err := newSide(ctx, c.name, l.Nodes()[first-1+i], first+i)
		if err == nil {
			err = errors.Join(c.measure(ctx, r, s), s.close())
		}
		if err != nil && ctx.Err() == nil && c.name != lab.Nodeagent {
			fmt.Fprintf(os.Stderr, "  left out: %s, %d services from nothing: %v\n", c.name, c.services, err)
			err = nil
		}
		if err != nil {
			return fmt.Errorf("%s, %d services from nothing: %w", c.name, c.services, err)
		}
		r.Progress("from nothing", i+1, len(runs))
	}
	return nil
}

// measure lets the node's own processes be server and client, for pods are
// there only after the daemon.
func (c coldRun) measure(ctx context.Context, r *lab.Run, s *side) error {
	if err := s.ends("", "", s.addr); err != nil {
		return err
	}
	if err := s.api.put(s.box.Name, nil, fill(0, c.services, c.endpoints, s.addr)...); err != nil {
		return err
	}
	// The API server is this process: its collector would take a processor.
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	for range c.times {
		begin := time.Now()
		if err := s.start(r); err != nil {
			return err
		}
		if err := s.programmed(ctx, 0, c.services); err != nil {
			return err
		}
		r.Area.Duration(groupTime, cold(c.services, c.endpoints), c.name, time.Since(begin))
		if c.memory {
			if err := s.measureMemory(ctx, r, rss(c.services, c.endpoints)); err != nil {
				return err
			}
		}
		s.proxy.Kill()
		if c.name == lab.Nodeagent {
			if _, err := s.box.Run(ctx, "rm -rf /sys/fs/bpf/nodeagent /run/nodeagent"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *side) measureMemory(ctx context.Context, r *lab.Run, figure string) error {
	if err := lab.Pause(ctx, calm); err != nil {
		return err
	}
	p, err := lab.ReadProcess(s.proxy.PID())
	if err != nil {
		return errors.Join(err, s.proxy.Down())
	}
	r.Area.Add(groupTime, figure, "MB", s.name, float64(p.RSS)/1e6)
	return nil
}
