// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"slices"
)

// ErrInvalid marks input that cannot be programmed; nothing was changed.
var ErrInvalid = errors.New("invalid")

func (ep Endpoint) validate() error {
	if ep.ID == "" {
		return fmt.Errorf("%w endpoint: no id", ErrInvalid)
	}
	if ep.IfIndex <= 0 {
		return fmt.Errorf("%w endpoint %s: no interface index", ErrInvalid, ep.ID)
	}
	if len(ep.MAC) != 6 || len(ep.HostMAC) != 6 {
		return fmt.Errorf("%w endpoint %s: hardware addresses of %d and %d bytes", ErrInvalid, ep.ID, len(ep.MAC), len(ep.HostMAC))
	}
	if len(ep.Addrs) == 0 {
		return fmt.Errorf("%w endpoint %s: no address", ErrInvalid, ep.ID)
	}
	for _, a := range ep.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w endpoint %s: address %s", ErrInvalid, ep.ID, a)
		}
	}
	return nil
}

func (n Node) validate() error {
	for _, a := range n.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w node %s: address %s", ErrInvalid, n.Name, a)
		}
	}
	for _, p := range slices.Concat(n.PodCIDRs, n.NonMasqueradeCIDRs) {
		if !p.IsValid() {
			return fmt.Errorf("%w node %s: range %s", ErrInvalid, n.Name, p)
		}
	}
	return nil
}

func (p Peer) validate() error {
	if p.Name == "" {
		return fmt.Errorf("%w peer: no name", ErrInvalid)
	}
	switch p.Mode {
	case "", "auto", "native", "vxlan":
	default:
		return fmt.Errorf("%w peer %s: mode %q", ErrInvalid, p.Name, p.Mode)
	}
	for _, a := range p.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w peer %s: address %s", ErrInvalid, p.Name, a)
		}
	}
	for _, c := range p.PodCIDRs {
		if !c.IsValid() {
			return fmt.Errorf("%w peer %s: range %s", ErrInvalid, p.Name, c)
		}
	}
	return nil
}
