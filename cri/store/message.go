// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Message is a CRI message inside a record, kept byte for byte as protobuf, so
// that fields this daemon does not know yet survive. P is *T.
type Message[T any, P interface {
	*T
	proto.Message
}] struct {
	// M may be nil; it is shared between copies of a record and never changed.
	M P
}

// MarshalJSON writes the message as base64 of its wire form, null for nil.
func (m Message[T, P]) MarshalJSON() ([]byte, error) {
	if m.M == nil {
		return []byte("null"), nil
	}
	b, err := proto.Marshal(m.M)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m.M, err)
	}
	if b == nil {
		b = []byte{}
	}
	return json.Marshal(b)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Message[T, P]) UnmarshalJSON(data []byte) error {
	var b []byte
	if err := json.Unmarshal(data, &b); err != nil {
		return fmt.Errorf("decode %T: %w", m.M, err)
	}
	if b == nil {
		m.M = nil
		return nil
	}
	m.M = P(new(T))
	if err := proto.Unmarshal(b, m.M); err != nil {
		return fmt.Errorf("decode %T: %w", m.M, err)
	}
	return nil
}
