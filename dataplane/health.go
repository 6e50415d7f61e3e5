// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// healthTimeout bounds what one request of a load balancer may take.
const healthTimeout = 5 * time.Second

// health answers load balancers that ask, at a port of each service's own,
// whether the node has endpoints of it: what kube-proxy does for services with
// external traffic policy Local. It is not safe for concurrent use.
type health struct {
	wg      sync.WaitGroup
	servers map[types.NamespacedName]*healthServer
}

type healthServer struct {
	name  types.NamespacedName
	port  uint16
	local atomic.Int64
	http  *http.Server
}

// set opens, changes or closes the port of a service.
func (h *health) set(name types.NamespacedName, want service.Health) error {
	have := h.servers[name]
	if have != nil && have.port != want.Port {
		delete(h.servers, name)
		if err := have.http.Close(); err != nil {
			return fmt.Errorf("health check of %s: %w", name, err)
		}
		have = nil
	}
	if want.Port == 0 {
		return nil
	}
	if have == nil {
		have = &healthServer{name: name, port: want.Port}
		if err := h.serve(have); err != nil {
			return fmt.Errorf("health check of %s: %w", name, err)
		}
		h.servers[name] = have
	}
	have.local.Store(int64(want.Local))
	return nil
}

func (h *health) serve(s *healthServer) error {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(s.port))) //nolint:noctx // it does not wait
	if err != nil {
		return err
	}
	s.http = &http.Server{Handler: s, ReadTimeout: healthTimeout, WriteTimeout: healthTimeout}
	h.wg.Go(func() {
		// Serve ends with an error by its nature: Close.
		_ = s.http.Serve(l)
	})
	return nil
}

// stop closes all ports.
func (h *health) stop(context.Context) error {
	var errs []error
	for _, s := range h.servers {
		errs = append(errs, s.http.Close())
	}
	h.wg.Wait()
	clear(h.servers)
	return errors.Join(errs...)
}

// ServeHTTP answers 200 while there are endpoints, else 503, as kube-proxy does.
func (s *healthServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	local := s.local.Load()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(local, 10))
	if local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	body := map[string]any{
		"service":             map[string]string{"namespace": s.name.Namespace, "name": s.name.Name},
		"localEndpoints":      local,
		"serviceProxyHealthy": true,
	}
	_ = json.NewEncoder(w).Encode(body) // an error means that the client is gone
}
