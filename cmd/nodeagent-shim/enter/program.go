// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"encoding/binary"
	"unsafe"
)

// base is where the helper maps a list; the pointers in it are true there.
const base = 0x100000000

// check is the number of what is no system call: a comparison of memory.
const check = 0xffffffff

// What may be said of a call; see src/enter.c.
const (
	flagAny   = 1
	flagClone = 2
	flagNot   = 4
)

// op is struct op of src/enter.c.
type op struct {
	nr    uint32
	flags uint16
	_     uint16
	args  [6]uint64
	out   uint64
	skip  uint32
	allow [2]uint16
}

// header is struct list of src/enter.c.
const header = 16

// list is a list of system calls under construction, with the memory that they point to.
type list struct {
	ops   []op
	names []string // what each of ops is for, in words
	data  []byte
}

// call adds a system call and returns it, to be changed until the next one is added.
func (l *list) call(name string, nr uintptr, args ...uint64) *op {
	o := op{nr: uint32(nr)} //nolint:gosec // system calls have small numbers
	copy(o.args[:], args)
	l.ops = append(l.ops, o)
	l.names = append(l.names, name)
	return &l.ops[len(l.ops)-1]
}

// check adds a comparison of 32 bits at an address under a mask, and the error that it is when they differ.
func (l *list) check(name string, at, mask, want uint64, errno uintptr) *op {
	o := l.call(name, 0, at, mask, want, uint64(errno))
	o.nr = check
	return o
}

// put adds memory, aligned for anything, and returns its address.
func (l *list) put(b []byte) uint64 {
	for len(l.data)%8 != 0 {
		l.data = append(l.data, 0)
	}
	at := base + header + uint64(len(l.data))
	l.data = append(l.data, b...)
	return at
}

// text adds a string as C knows it.
func (l *list) text(s string) uint64 { return l.put(append([]byte(s), 0)) }

// words adds an array of words.
func (l *list) words(w ...uint64) uint64 {
	b := make([]byte, 0, 8*len(w))
	for _, v := range w {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return l.put(b)
}

// strings adds an array of strings with nothing at its end.
func (l *list) strings(list []string) uint64 {
	at := make([]uint64, len(list)+1)
	for i, s := range list {
		at[i] = l.text(s)
	}
	return l.words(at...)
}

// image is the list as the helper maps it.
func (l *list) image() []byte {
	ops := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(l.ops))), len(l.ops)*int(unsafe.Sizeof(op{})))
	at := l.put(ops)
	image := make([]byte, 0, header+len(l.data))
	image = binary.NativeEndian.AppendUint64(image, at)
	image = binary.NativeEndian.AppendUint64(image, uint64(len(l.ops)))
	return append(image, l.data...)
}
