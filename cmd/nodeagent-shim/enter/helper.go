// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

//go:generate clang-19 --target=x86_64-linux-gnu -Os -Wall -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static -fuse-ld=lld-19 -Wl,--build-id=none,-s,-z,noexecstack -o helper_amd64.bin src/enter.c
//go:generate clang-19 --target=aarch64-linux-gnu -Os -Wall -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static -fuse-ld=lld-19 -Wl,--build-id=none,-s,-z,noexecstack -o helper_arm64.bin src/enter.c

// The descriptors of the helper beside the standard streams; see src/enter.c.
const (
	listFD = 3 + iota
	reportFD
	pidFD
	cgroupFD // the first of them
)

// mfdExec is MFD_EXEC of Linux 6.3: the file may be run whatever vm.memfd_noexec says of files that do not ask.
const mfdExec = 0x10

// Program is the helper as a file that can be run and not be written, by nobody: it is what a container sees of us.
type Program struct {
	once sync.Once
	file *os.File
	err  error
}

// path is where the file is run from.
func (p *Program) path() (string, error) {
	p.once.Do(func() { p.file, p.err = seal("nodeagent-exec", helper, mfdExec) })
	if p.err != nil {
		return "", p.err
	}
	// By our number and not "self": in the child another file may have the descriptor's place by then.
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.file.Fd()), nil
}

// seal returns a file in memory that does not change any more.
func seal(name string, data []byte, flags int) (_ *os.File, retErr error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() {
		if retErr != nil {
			_ = f.Close()
		}
	}()
	if _, err := f.Write(data); err != nil {
		return nil, fmt.Errorf("fill file in memory: %w", err)
	}
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all); err != nil {
		return nil, fmt.Errorf("seal file in memory: %w", err)
	}
	return f, nil
}
