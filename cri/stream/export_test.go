// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"io"
	"log"
)

// Forward is what a port forwarding session does for one connection.
func Forward(ctx context.Context, netns string, port int32, stream io.ReadWriter) error {
	return forward(ctx, netns, port, stream)
}

// LogTo takes what the HTTP server says, of panics of its handlers, too.
func (s *Server) LogTo(l *log.Logger) { s.http.ErrorLog = l }
