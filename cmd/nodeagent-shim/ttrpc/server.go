// SPDX-License-Identifier: Apache-2.0

// Package ttrpc speaks containerd's ttrpc protocol as far as a shim needs it: unary calls, served and made.
//
// A message is a header of ten bytes (length, stream, type, flags) and a protobuf Request or Response.
package ttrpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

const (
	headerLen   = 10
	maxMessage  = 4 << 20
	kindRequest = 1
	kindReply   = 2
)

// Handler serves one method.
type Handler func(ctx context.Context, request []byte) (wire.Message, error)

// Server serves methods by their full name, "service/method".
type Server struct {
	Methods map[string]Handler
}

// Serve accepts connections until the listener closes.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go s.connection(ctx, conn)
	}
}

// connection serves one peer; the calls of a peer that has gone are cancelled.
func (s *Server) connection(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _ = conn.Close() }()
	out := &writer{w: conn}
	in := bufio.NewReader(conn)
	for {
		stream, kind, body, err := readMessage(in)
		if err != nil {
			return
		}
		if kind == kindRequest {
			go s.call(ctx, out, stream, body)
		}
	}
}

func (s *Server) call(ctx context.Context, out *writer, stream uint32, body []byte) {
	reply, err := s.dispatch(ctx, body)
	var m wire.Message
	if err != nil {
		m.Bytes(1, status(err))
	}
	m.Bytes(2, reply)
	if len(m) > maxMessage {
		m = nil
		m.Bytes(1, status(fmt.Errorf("reply of %d bytes is too long: %w", len(reply), errdefs.ErrResourceExhausted)))
	}
	_ = out.send(stream, kindReply, m) // a peer that has gone wants no answer
}

func (s *Server) dispatch(ctx context.Context, body []byte) (wire.Message, error) {
	var service, method string
	var payload []byte
	var timeout time.Duration
	err := wire.Read(body, func(field int, v wire.Value) error {
		switch field {
		case 1:
			service = v.String()
		case 2:
			method = v.String()
		case 3:
			payload = v.Bytes
		case 4:
			timeout = time.Duration(v.Uint) //nolint:gosec // a negative timeout is ignored below
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	h := s.Methods[service+"/"+method]
	if h == nil {
		return nil, fmt.Errorf("%s/%s: %w", service, method, errdefs.ErrNotImplemented)
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return h(ctx, payload)
}

// writer sends messages whole.
type writer struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (w *writer) send(stream uint32, kind byte, body []byte) error {
	buf := make([]byte, headerLen, headerLen+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body))) //nolint:gosec // bounded by maxMessage
	binary.BigEndian.PutUint32(buf[4:], stream)
	buf[8] = kind
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.w.Write(append(buf, body...))
	return err
}

func readMessage(r io.Reader) (stream uint32, kind byte, body []byte, err error) { //nolint:revive // the four parts of a message
	var head [headerLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return 0, 0, nil, fmt.Errorf("message of %d bytes: %w", n, errdefs.ErrResourceExhausted)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return binary.BigEndian.Uint32(head[4:]), head[8], body, err
}

// status is a google.rpc.Status.
func status(err error) wire.Message {
	var m wire.Message
	m.Uint(1, code(err))
	m.String(2, err.Error())
	return m
}

// code is the gRPC code of an error; containerd turns it back into the same sentinel.
func code(err error) uint64 {
	switch {
	case errors.Is(err, context.Canceled):
		return 1
	case errors.Is(err, errdefs.ErrInvalidArgument):
		return 3
	case errors.Is(err, context.DeadlineExceeded):
		return 4
	case errors.Is(err, errdefs.ErrNotFound):
		return 5
	case errors.Is(err, errdefs.ErrAlreadyExists):
		return 6
	case errors.Is(err, errdefs.ErrResourceExhausted):
		return 8
	case errors.Is(err, errdefs.ErrFailedPrecondition):
		return 9
	case errors.Is(err, errdefs.ErrNotImplemented):
		return 12
	case errors.Is(err, errdefs.ErrUnavailable):
		return 14
	}
	return 2
}
