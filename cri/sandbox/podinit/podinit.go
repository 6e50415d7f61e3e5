// SPDX-License-Identifier: Apache-2.0

// Package podinit carries the program that is the first process of a pod which
// shares its process namespace. The program is C without a library, built for
// each architecture by `go generate` and committed.
package podinit

//go:generate clang-19 --target=x86_64-linux-gnu -Os -Wall -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static -fuse-ld=lld-19 -Wl,--build-id=none,-s,-z,noexecstack -o podinit_amd64.bin src/podinit.c
//go:generate clang-19 --target=aarch64-linux-gnu -Os -Wall -Werror -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables -nostdlib -static -fuse-ld=lld-19 -Wl,--build-id=none,-s,-z,noexecstack -o podinit_arm64.bin src/podinit.c

// Binary returns the program for this machine, a static ELF executable.
func Binary() []byte { return binary }
