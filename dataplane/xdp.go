// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/dataplane/attach"
)

// Modes of ServiceOptions.XDP.
const (
	XDPOff    = "off"
	XDPAuto   = "auto"
	XDPNative = "native"
)

// Acceleration is what became of XDP at one uplink.
type Acceleration struct {
	IfName string `json:"ifName"`
	// Native: flows that only pass through are carried in the driver.
	Native bool `json:"native"`
	// Why it is not; empty when it is.
	Why string `json:"why,omitempty"`
}

// String is what people read.
func (a Acceleration) String() string {
	if a.Native {
		return "native"
	}
	return "none: " + a.Why
}

// Accelerations says it of every uplink; nothing when XDP is off.
func (d *Dataplane) Accelerations() []Acceleration {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Acceleration
	for _, a := range d.xdp {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b Acceleration) int { return cmp.Compare(a.IfName, b.IfName) })
	return out
}

// accelerate puts the program of XDP before the others of an uplink, where that
// is wanted and can be. What cannot be is said once, and the uplink works all
// the same. The caller holds mu.
func (d *Dataplane) accelerate(i attach.Interface) bool {
	if d.cfg.ServiceOptions.XDP == XDPOff || !d.cfg.Services {
		return false
	}
	a := Acceleration{IfName: i.Name}
	a.Native, a.Why = d.tryXDP(i)
	if old, ok := d.xdp[i.Index]; !ok || old != a {
		d.log.Info("XDP of uplink", "if_name", i.Name, "native", a.Native, "why", a.Why)
	}
	d.xdp[i.Index] = a
	return a.Native
}

func (d *Dataplane) tryXDP(i attach.Interface) (native bool, why string) {
	kind, err := attach.Driver(i.Index)
	if err != nil {
		return false, err.Error()
	}
	// Frames that XDP sends by a veth are lost unless its other end has a program
	// of XDP, which nobody on this side can see.
	if kind == "veth" && d.cfg.ServiceOptions.XDP == XDPAuto {
		return false, "a veth, which loses frames unless its other end has XDP: say native if it has"
	}
	if old, ok := d.xdp[i.Index]; ok && (old.Native || old.Why != "") {
		return old.Native, old.Why // asking again is for the next start
	}
	err = d.kernel.XDP(i.Index)
	switch {
	case err == nil:
		return true, ""
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return false, "the driver of " + i.Name + " has no native XDP"
	case errors.Is(err, unix.EBUSY):
		return false, "another program of XDP is there"
	default:
		return false, err.Error()
	}
}

// slowDown takes XDP off interfaces that are not in want any more.
func (d *Dataplane) slowDown(want map[int]bool) error {
	have, err := d.kernel.AttachedXDP()
	errs := []error{err}
	for _, idx := range have {
		if !want[idx] && (d.nodeKnown || d.cfg.ServiceOptions.XDP == XDPOff) {
			errs = append(errs, d.kernel.ForgetXDP(idx))
		}
	}
	for idx := range d.xdp {
		if _, up := d.uplinks[idx]; !up {
			delete(d.xdp, idx)
		}
	}
	return errors.Join(errs...)
}
