// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

type sockHook struct {
	name string
	at   ebpf.AttachType
	prog *ebpf.Program
}

func (k *Kernel) sockHooks() []sockHook {
	return []sockHook{
		{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg, k.SockRecvmsg4},
		{"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg, k.SockRecvmsg6},
		{"getpeername4", ebpf.AttachCgroupInet4GetPeername, k.SockGetpeer4},
		{"getpeername6", ebpf.AttachCgroupInet6GetPeername, k.SockGetpeer6},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, k.SockSendmsg4},
		{"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, k.SockSendmsg6},
		{"sockops", ebpf.AttachCGroupSockOps, k.SockOps},
		{"connect4", ebpf.AttachCGroupInet4Connect, k.SockConnect4},
		{"connect6", ebpf.AttachCGroupInet6Connect, k.SockConnect6},
	}
}

// Sockets attaches the socket programs to a cgroup, or replaces them: those
// that translate back first, so that no socket sees only one half.
// Statistics of connections need one program more.
func (k *Kernel) Sockets(cgroup string, stats bool) error {
	for _, h := range k.sockHooks() {
		if h.at == ebpf.AttachCGroupSockOps && !stats {
			if err := k.forgetSocket(h); err != nil {
				return err
			}
			continue
		}
		pin := k.linkPin(pinSock + h.name)
		l, err := link.LoadPinnedLink(pin, nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			l, err = k.attachSocket(cgroup, h, pin)
		case err == nil:
			if err = l.Update(h.prog); err != nil {
				// The cgroup is gone and the link with it.
				err = errors.Join(l.Unpin(), l.Close())
				if err == nil {
					l, err = k.attachSocket(cgroup, h, pin)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.name, cgroup, err)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kernel) attachSocket(cgroup string, h sockHook, pin string) (link.Link, error) {
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: h.at, Program: h.prog})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(pin); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// ForgetSockets detaches the socket programs.
func (k *Kernel) ForgetSockets() error {
	var errs []error
	for _, h := range k.sockHooks() {
		errs = append(errs, k.forgetSocket(h))
	}
	return errors.Join(errs...)
}

func (k *Kernel) forgetSocket(h sockHook) error {
	if err := os.Remove(k.linkPin(pinSock + h.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CgroupRoot is the root of the cgroup v2 hierarchy; empty when there is none.
func CgroupRoot() string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	return ""
}

// HostCookie is the cookie of the network namespace of the calling thread.
func HostCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only looked at
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	return c, nil
}
