// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// dialArg is argv[1] of a process that makes a connection in a box.
const dialArg = "cluster-box-dial"

// Dial connects from the box's network; addr has a literal IP address. Where the box has
// a cgroup, a process in it makes the connection and hands it over: programs on cgroups
// translate services by where the socket's maker is.
func (b *Box) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if b.cgroup != "" {
		return b.dialInside(ctx, network, addr)
	}
	err = b.InNet(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

func (b *Box) dialInside(ctx context.Context, network, addr string) (net.Conn, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer func() { _ = ours.Close() }()
	cmd := exec.CommandContext(ctx, self, dialArg, network, addr)
	cmd.SysProcAttr = &unix.SysProcAttr{}
	cmd.ExtraFiles = []*os.File{theirs}
	err = b.Start(cmd)
	_ = theirs.Close()
	if err != nil {
		return nil, err
	}
	conn, err := receive(pair[0])
	if waitErr := cmd.Wait(); waitErr != nil && err == nil {
		return nil, errors.Join(waitErr, conn.Close())
	}
	return conn, errors.Join(err, ctx.Err())
}

// receive takes a connection, or the reason why there is none, from a socket.
func receive(fd int) (net.Conn, error) {
	text, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(fd, text, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) == 0 {
		return nil, errors.Join(err, errors.New(strings.TrimSpace(string(text[:n]))))
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer func() { _ = f.Close() }()
	return net.FileConn(f)
}

// boxDial is the process in the box.
func boxDial(network, addr string) bool {
	conn, err := net.Dial(network, addr) //nolint:noctx // its maker ends it
	if err == nil {
		err = send(3, conn)
	}
	if err != nil {
		_ = unix.Sendmsg(3, []byte(err.Error()), nil, nil, 0)
	}
	return true
}

func send(fd int, conn net.Conn) error {
	f, err := conn.(interface{ File() (*os.File, error) }).File() //nolint:errcheck,forcetypeassert // net's own
	if err != nil {
		return fmt.Errorf("descriptor of the connection: %w", err)
	}
	return unix.Sendmsg(fd, []byte("ok"), unix.UnixRights(int(f.Fd())), nil, 0)
}
