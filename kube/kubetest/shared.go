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
// that asks, and ends with the package (Close, from TestMain).
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
		dir, err := os.MkdirTemp("", "kubetest-")
		if err != nil {
			t.Fatal(err)
		}
		s.dir = dir
		// Not the test's context: the server outlives the test.
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

// Close ends the server if there is one.
func (s *Shared) Close() {
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
