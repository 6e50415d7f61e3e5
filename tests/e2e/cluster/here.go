// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Here is the machine itself as a node whose runtime somebody else started: what is asked of a node in
// namespaces of its own can be asked of a whole machine, too.
func Here() (*Node, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return nil, fmt.Errorf("open process 1: %w", err)
	}
	n := &Node{Box: &Box{Name: name, PID: 1, namespaces: boxNamespaces, pidfd: fd}, kind: RuntimeNodeagent}
	// No packet leaves: it only says which of the machine's addresses the uplink has.
	conn, err := net.Dial("udp4", "192.0.2.1:9") //nolint:noctx // asks no one
	if err != nil {
		return nil, fmt.Errorf("find the uplink: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		n.IP4 = a.IP.String()
	}
	return n, nil
}

// ServeImages serves the registry of RegistryURL on the machine itself until ctx ends; its address has to be there.
func ServeImages(ctx context.Context, cfg Config) (retErr error) {
	here, err := Here()
	if err != nil {
		return err
	}
	c := &Cluster{Config: cfg, dir: filepath.Join(cfg.Base, cfg.Name), bare: true, alone: true, Control: here.Box}
	defer func() { retErr = errors.Join(retErr, c.Down(context.WithoutCancel(ctx))) }()
	if err := c.startRegistry(ctx); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
