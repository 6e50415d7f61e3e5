// SPDX-License-Identifier: Apache-2.0

package ttrpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// Client makes calls one after the other over a connection that is opened when needed. It is not for concurrent use.
type Client struct {
	// Address is the path of the peer's socket.
	Address string

	conn   net.Conn
	in     *bufio.Reader
	stream uint32
}

// Call makes one call. After an error of the connection the next call opens a new one.
func (c *Client) Call(ctx context.Context, service, method string, request wire.Message) ([]byte, error) {
	if c.conn == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.Address)
		if err != nil {
			return nil, fmt.Errorf("dial: %w", err)
		}
		c.conn, c.in, c.stream = conn, bufio.NewReader(conn), 1
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.conn.SetDeadline(deadline)
	}
	reply, err := c.exchange(service, method, request)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("call %s/%s: %w", service, method, err)
	}
	_ = c.conn.SetDeadline(time.Time{})
	return reply.payload, reply.err
}

// Close closes the connection, if there is one.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

type reply struct {
	payload []byte
	err     error
}

func (c *Client) exchange(service, method string, request wire.Message) (reply, error) {
	var m wire.Message
	m.String(1, service)
	m.String(2, method)
	m.Bytes(3, request)
	stream := c.stream
	c.stream += 2 // streams of clients are odd
	out := &writer{w: c.conn}
	if err := out.send(stream, kindRequest, m); err != nil {
		return reply{}, err
	}
	for {
		got, kind, body, err := readMessage(c.in)
		if err != nil {
			return reply{}, err
		}
		if got != stream || kind != kindReply {
			continue
		}
		var r reply
		err = wire.Read(body, func(field int, v wire.Value) error {
			switch field {
			case 1:
				r.err = readStatus(v.Bytes)
			case 2:
				r.payload = v.Bytes
			}
			return nil
		})
		return r, err
	}
}

func readStatus(b []byte) error {
	var code uint64
	var text string
	err := wire.Read(b, func(field int, v wire.Value) error {
		switch field {
		case 1:
			code = v.Uint
		case 2:
			text = v.String()
		}
		return nil
	})
	if err != nil || code == 0 {
		return err
	}
	return errors.New(text)
}
