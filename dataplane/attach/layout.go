// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// field is a number or an array of bytes somewhere inside a key or a value.
type field struct {
	path      string
	off, size uint32
}

// shape is the layout of a map's keys and values, by the names of their fields.
type shape struct{ key, value []field }

func (s shape) equal(o shape) bool {
	return slices.Equal(s.key, o.key) && slices.Equal(s.value, o.value)
}

// shapeOf is the layout that the compiler described.
func shapeOf(key, value btf.Type) (shape, error) {
	k, err := fields(key)
	if err != nil {
		return shape{}, err
	}
	v, err := fields(value)
	return shape{k, v}, err
}

// fields lists what is in a type, in the order of the memory.
func fields(t btf.Type) ([]field, error) {
	var out []field
	err := walk(t, "", 0, &out)
	return out, err
}

func walk(t btf.Type, path string, off uint32, out *[]field) error {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return walkMembers(t, path, off, out)
	case *btf.Array:
		size, err := btf.Sizeof(t.Type)
		if err != nil {
			return err
		}
		if _, nested := btf.UnderlyingType(t.Type).(*btf.Struct); !nested {
			*out = append(*out, field{path, off, uint32(size) * t.Nelems})
			return nil
		}
		for i := range t.Nelems {
			if err := walk(t.Type, fmt.Sprintf("%s[%d]", path, i), off+i*uint32(size), out); err != nil {
				return err
			}
		}
		return nil
	default:
		size, err := btf.Sizeof(t)
		if err != nil {
			return err
		}
		*out = append(*out, field{path, off, uint32(size)})
		return nil
	}
}

func walkMembers(t *btf.Struct, path string, off uint32, out *[]field) error {
	for _, m := range t.Members {
		if m.BitfieldSize > 0 {
			return fmt.Errorf("%s.%s: %w", path, m.Name, errors.ErrUnsupported)
		}
		if err := walk(m.Type, path+"."+m.Name, off+m.Offset.Bytes(), out); err != nil {
			return err
		}
	}
	return nil
}

// move is a piece of memory that two layouts have in common.
type move struct{ to, from, size uint32 }

// moves says how to make the one layout of the other: fields of the same name
// keep what they hold, also when they got wider; what is new is zero. Numbers
// are little-endian, as everything of bpf's is here.
func moves(to, from []field) []move {
	var out []move
	for _, t := range to {
		i := slices.IndexFunc(from, func(f field) bool { return f.path == t.path })
		if i >= 0 {
			out = append(out, move{t.off, from[i].off, min(t.size, from[i].size)})
		}
	}
	return out
}

// apply makes a buffer of the other layout.
func apply(ms []move, size uint32, from []byte) []byte {
	to := make([]byte, size)
	for _, m := range ms {
		copy(to[m.to:m.to+m.size], from[m.from:])
	}
	return to
}

// bytesOf are the moves as the programs want them: for each byte of the target
// its place in the source, or nowhere (OLD_NONE of bpf/lib/recall.h).
func bytesOf(ms []move, size int) ([]byte, error) {
	const none = 255
	out := make([]byte, size)
	for i := range out {
		out[i] = none
	}
	for _, m := range ms {
		for i := range m.size {
			if int(m.to+i) >= size || m.from+i >= none {
				return nil, fmt.Errorf("records of %d bytes: %w", m.from+i, errors.ErrUnsupported)
			}
			out[m.to+i] = byte(m.from + i)
		}
	}
	return out, nil
}

// pinnedShape is the layout of a map in the kernel; ErrNotSupported when the
// kernel was not told.
func pinnedShape(m *ebpf.Map) (s shape, err error) {
	h, err := m.Handle()
	if err != nil {
		return shape{}, fmt.Errorf("read types of map: %w", err)
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	spec, err := h.Spec(nil)
	if err != nil {
		return shape{}, fmt.Errorf("read types of map: %w", err)
	}
	ids, err := typeIDs(m)
	if err != nil {
		return shape{}, err
	}
	key, err := spec.TypeByID(ids[0])
	if err != nil {
		return shape{}, fmt.Errorf("read type of keys: %w", err)
	}
	value, err := spec.TypeByID(ids[1])
	if err != nil {
		return shape{}, fmt.Errorf("read type of values: %w", err)
	}
	return shapeOf(key, value)
}

// mapInfo is the kernel's struct bpf_map_info up to what we read of it: the
// library keeps the types of keys and values to itself.
type mapInfo struct {
	_             [6]uint32
	_             [16]byte
	_             [2]uint32
	_             [2]uint64
	_             uint32
	key, value, _ btf.TypeID
}

// typeIDs are the types of a map's keys and values.
func typeIDs(m *ebpf.Map) ([2]btf.TypeID, error) {
	info := new(mapInfo)
	attr := struct {
		fd, size uint32
		info     uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD,
		uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(info)
	if errno != 0 {
		return [2]btf.TypeID{}, fmt.Errorf("read types of map: %w", errno)
	}
	return [2]btf.TypeID{info.key, info.value}, nil
}
