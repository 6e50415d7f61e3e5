// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

// manager is the service manager's socket (sd_notify(3)); empty without one.
type manager string

// takeManager takes the socket out of the environment: what the daemon starts must not speak for it, and runc, which
// finds it there, hands a socket of its own to each container, below a directory whose path is too long for one.
func takeManager() (manager, error) {
	const key = "NOTIFY_SOCKET"
	m := manager(os.Getenv(key))
	if err := os.Unsetenv(key); err != nil {
		return "", fmt.Errorf("unset %s: %w", key, err)
	}
	return m, nil
}

// tell sends a state; without a manager it does nothing.
func (m manager) tell(ctx context.Context, state string) error {
	if m == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixgram", string(m))
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(state))
	if closeErr := conn.Close(); err == nil {
		err = closeErr
	}
	return err
}
