// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"k8s.io/client-go/kubernetes"
)

// Shared is one server for all tests of a package: it starts with the first
// that asks, and ends with the package (see Main).
type Shared struct {
	mu     sync.Mutex
	server *Server
	dir    string
}

// Get is the running server with an administrator's client.
func (s *Shared) Get(t *testing.T) (*Server, kubernetes.Interface) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		//nolint:usetesting // the server outlives the test
		dir, err := os.MkdirTemp("", "kubetest-")
		if err != nil {
			t.Fatal(err)
		}
		s.dir = dir
		if s.server, err = Start(context.WithoutCancel(t.Context()), dir); err != nil {
			t.Fatal(err)
		}
	}
	client, err := s.server.Client()
	if err != nil {
		t.Fatal(err)
	}
	return s.server, client
}

// Main is m with the server's end after it, for a TestMain that looks for
// leaks: goleak.VerifyTestMain(shared.Main(m)).
func (s *Shared) Main(m *testing.M) *Main { return &Main{m: m, shared: s} }

// Main runs a package's tests and then ends the server.
type Main struct {
	m      *testing.M
	shared *Shared
}

// Run runs the tests.
func (m *Main) Run() int {
	code := m.m.Run()
	m.shared.close()
	return code
}

func (s *Shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		if err := s.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		s.server = nil
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}
