// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs of the data path, in C, and what bpf2go makes
// of them: the compiled object and the Go side of every type that C and Go
// share. C is the truth; nothing here is typed by hand.
package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -g -mcpu=v3 -I. -Iinclude -Wall -Wextra -Werror -Wshadow -Wimplicit-fallthrough -Wimplicit-int-conversion -Wenum-conversion" -type addr -type tuple -type hook -type reason -type endpoint -type ep_flags -type ct_value -type ct_flags -type svc_key -type svc_value -type svc_flags -type scope -type backend -type be_flags -type aff_key -type aff_value -type range_key -type route_key -type route -type route_kind -type way -type uplink -type bucket -type uplink_flags -type counter -type svc_stat -type event -type sk_key -type peer -type tcp_flags -type mode -type pol_key -type profile Datapath datapath.c

// The same programs over records of another layout, for the tests of upgrades.
//go:generate clang-19 -O2 -g -mcpu=v3 -target bpfel -Itestdata/older -I. -Iinclude -fdebug-compilation-dir=. -c datapath.c -o testdata/older/datapath.o
//go:generate llvm-strip-19 -g testdata/older/datapath.o
