// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Socket is a connected socket of the namespace of the calling thread.
type Socket struct {
	Proto         uint8
	Local, Remote netip.AddrPort
	Cookie        uint64

	diag *netlink.Socket
}

// Sockets returns the connected sockets of a protocol, TCP (6) or UDP (17).
func Sockets(proto uint8) ([]Socket, error) {
	dump := netlink.SocketDiagTCP
	if proto == unix.IPPROTO_UDP {
		dump = netlink.SocketDiagUDP
	}
	var out []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := dump(family)
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range list {
			remote, ok := netip.AddrFromSlice(s.ID.Destination)
			if !ok || s.ID.DestinationPort == 0 {
				continue
			}
			local, _ := netip.AddrFromSlice(s.ID.Source)
			out = append(out, Socket{
				Proto:  proto,
				Local:  netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort),
				Remote: netip.AddrPortFrom(remote.Unmap(), s.ID.DestinationPort),
				Cookie: uint64(s.ID.Cookie[1])<<32 | uint64(s.ID.Cookie[0]),
				diag:   s,
			})
		}
	}
	return out, nil
}

// Destroy ends a socket: what uses it hears ECONNABORTED, and can connect
// anew. One that is gone is no fault.
func (s Socket) Destroy() error {
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddData(destroyRequest{s})
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("end socket %s: %w", s.Local, err)
}

// destroyRequest is struct inet_diag_req_v2 (linux/inet_diag.h).
type destroyRequest struct{ Socket }

var _ nl.NetlinkRequestData = destroyRequest{}

// Len is the size of the structure.
func (destroyRequest) Len() int { return 56 }

// Serialize writes the structure: its ports and addresses in the order of the wire.
func (r destroyRequest) Serialize() []byte {
	id := r.diag.ID
	b := make([]byte, 0, r.Len())
	b = append(b, r.diag.Family, r.Proto, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0))
	b = binary.BigEndian.AppendUint16(b, id.SourcePort)
	b = binary.BigEndian.AppendUint16(b, id.DestinationPort)
	for _, ip := range [][]byte{id.Source, id.Destination} {
		var field [16]byte
		if r.diag.Family == unix.AF_INET {
			ip = ip[len(ip)-4:]
		}
		copy(field[:], ip)
		b = append(b, field[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, id.Interface)
	b = binary.NativeEndian.AppendUint32(b, id.Cookie[0])
	return binary.NativeEndian.AppendUint32(b, id.Cookie[1])
}
