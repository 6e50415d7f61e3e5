// SPDX-License-Identifier: Apache-2.0

// Package wire reads and writes the few protobuf messages that containerd and a shim exchange, without generated code: the
// generated types with their reflection cost each shim process 1 MiB of private memory.
//
// Field numbers are those of containerd's api module; the tests hold them against its generated types.
package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Message is a message being written, in wire format. Zero values are left out, as proto3 does.
type Message []byte

// String adds a string field.
func (m *Message) String(field protowire.Number, v string) {
	if v != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, field, protowire.BytesType), v)
	}
}

// Bytes adds a field of bytes or an embedded message, even an empty one.
func (m *Message) Bytes(field protowire.Number, v []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, field, protowire.BytesType), v)
}

// Uint adds an integer or enum field.
func (m *Message) Uint(field protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, field, protowire.VarintType), v)
	}
}

// Bool adds a bool field.
func (m *Message) Bool(field protowire.Number, v bool) { m.Uint(field, protowire.EncodeBool(v)) }

// Time adds a google.protobuf.Timestamp; the zero time is left out.
func (m *Message) Time(field protowire.Number, t time.Time) {
	if t.IsZero() {
		return
	}
	var ts Message
	ts.Uint(1, uint64(t.Unix())) //nolint:gosec // times before 1970 do not occur
	ts.Uint(2, uint64(t.Nanosecond()))
	m.Bytes(field, ts)
}

// Any adds a google.protobuf.Any.
func (m *Message) Any(field protowire.Number, a Any) {
	var packed Message
	packed.String(1, a.Type)
	if len(a.Value) > 0 {
		packed.Bytes(2, a.Value)
	}
	m.Bytes(field, packed)
}

// Any is a google.protobuf.Any: a value and the name of its type.
type Any struct {
	Type  string
	Value []byte
}

// Value is one field as read: Uint for numbers, Bytes for all else.
type Value struct {
	Uint  uint64
	Bytes []byte
}

// String is the value of a string field.
func (v Value) String() string { return string(v.Bytes) }

// Bool is the value of a bool field.
func (v Value) Bool() bool { return v.Uint != 0 }

// Any is the value of a google.protobuf.Any field.
func (v Value) Any() (Any, error) {
	var a Any
	err := Read(v.Bytes, func(field int, v Value) error {
		switch field {
		case 1:
			a.Type = v.String()
		case 2:
			a.Value = v.Bytes
		}
		return nil
	})
	return a, err
}

// Read calls fn for each field of a message. Values share the message's memory.
func Read(b []byte, fn func(field int, v Value) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("read message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		var v Value
		switch kind {
		case protowire.VarintType:
			v.Uint, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.Bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return fmt.Errorf("read field %d: %w", field, protowire.ParseError(n))
		}
		b = b[n:]
		if err := fn(int(field), v); err != nil {
			return err
		}
	}
	return nil
}
