// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bufio"
	"context"
	"net"
	"net/http"

	"github.com/gorilla/websocket"
	tunneling "k8s.io/client-go/tools/portforward" //nolint:depguard // the connection in a tunnel, as the API server has it; no client is made
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// protocolTunnel is port forwarding in which the messages of a WebSocket carry
// the bytes of a SPDY connection (KEP-4006). The library refuses it, so the
// WebSocket ends here and the library serves the SPDY inside.
const protocolTunnel = portforward.WebsocketsSPDYTunnelingPortForwardV1

// serveTunnel runs one session.
func serveTunnel(w http.ResponseWriter, r *http.Request, lib http.Handler) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	lib.ServeHTTP(&tunnelWriter{ctx: ctx, w: w, r: r, header: http.Header{}}, inTunnel(r))
}

// inTunnel is the request for SPDY that a client would make without a tunnel.
func inTunnel(r *http.Request) *http.Request {
	r = r.Clone(r.Context())
	r.Method, r.Body = http.MethodPost, http.NoBody
	r.Header = http.Header{
		httpstream.HeaderConnection:      {httpstream.HeaderUpgrade},
		httpstream.HeaderUpgrade:         {spdy.HeaderSpdy31},
		httpstream.HeaderProtocolVersion: {portforward.ProtocolV1Name},
	}
	return r
}

// tunnelWriter is where the library answers the request in a tunnel. A refusal
// is the answer to the WebSocket's request, too; the library's change to SPDY
// is the WebSocket's beginning.
type tunnelWriter struct {
	ctx    context.Context //nolint:containedctx // the life of the session, which begins in the library
	w      http.ResponseWriter
	r      *http.Request
	header http.Header
}

var (
	_ http.ResponseWriter = (*tunnelWriter)(nil)
	_ http.Hijacker       = (*tunnelWriter)(nil)
)

// Header is not the client's: a refusal has no fields, the change to SPDY has
// those of SPDY.
func (w *tunnelWriter) Header() http.Header { return w.header }

func (w *tunnelWriter) WriteHeader(status int) {
	if status != http.StatusSwitchingProtocols {
		w.w.WriteHeader(status)
	}
}

func (w *tunnelWriter) Write(b []byte) (int, error) { return w.w.Write(b) }

// Hijack makes the WebSocket and gives the connection inside. The server
// does not know of connections that were taken from it, so the session's end
// closes this one.
func (w *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	up := websocket.Upgrader{
		Subprotocols: []string{protocolTunnel},
		CheckOrigin:  func(*http.Request) bool { return true }, // the URL is the permission
	}
	ws, err := up.Upgrade(w.w, w.r, nil)
	if err != nil {
		return nil, nil, err // the client has been told
	}
	conn := tunneling.NewTunnelingConnection("server", ws)
	context.AfterFunc(w.ctx, func() { _ = conn.Close() })
	return conn, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn)), nil
}
