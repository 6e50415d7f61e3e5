// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"os/exec"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// noForeign finds out which of x86 and x32 this kernel cannot run, by trying.
func noForeign() []specs.Arch {
	var out []specs.Arch
	// The x32 ABI marks its calls with this bit; a kernel without it knows no such number.
	const x32 = 0x40000000
	if _, _, err := unix.RawSyscall(unix.SYS_GETPID|x32, 0, 0, 0); err == unix.ENOSYS {
		out = append(out, specs.ArchX32)
	}
	if !runs32() {
		out = append(out, specs.ArchX86)
	}
	return out
}

// runs32 executes a 32-bit program of three instructions. Whatever else goes wrong, the answer is that it might run.
func runs32() bool {
	fd, err := unix.MemfdCreate("x86", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err != nil {
		// A kernel before 6.3 does not know MFD_EXEC.
		if fd, err = unix.MemfdCreate("x86", unix.MFD_CLOEXEC); err != nil {
			return true
		}
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, exit32()); err != nil {
		return true
	}
	err = exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd)).Run() //nolint:noctx // it ends at once
	return !errors.Is(err, unix.ENOEXEC)
}

// exit32 is an ELF file for i386 that calls exit(0): a header, one program header, and
// mov eax, 1; xor ebx, ebx; int 0x80.
func exit32() []byte {
	const base, entry, size = 0x08048000, 0x54, 0x5d
	le := func(v uint32) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)} }
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0, 1, 0, 0, 0}
	b = append(b, le(base+entry)...)
	b = append(b, le(0x34)...) // program headers
	b = append(b, le(0)...)    // section headers
	b = append(b, le(0)...)    // flags
	b = append(b, 0x34, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0)
	for _, v := range []uint32{1, 0, base, base, size, size, 5, 0x1000} {
		b = append(b, le(v)...)
	}
	return append(b, 0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80)
}
