// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestManagerIsOurs: the service manager hears the daemon, and nobody that the daemon starts knows where it listens.
func TestManagerIsOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close() //nolint:errcheck // a test's
	t.Setenv("NOTIFY_SOCKET", path)
	m, err := takeManager()
	if _, left := os.LookupEnv("NOTIFY_SOCKET"); err != nil || left {
		t.Fatalf("left in the environment: %v, %v", left, err)
	}
	if err := m.tell(t.Context(), "READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := socket.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("heard %q, %v", buf[:n], err)
	}
	if err := manager("").tell(t.Context(), "READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
}
