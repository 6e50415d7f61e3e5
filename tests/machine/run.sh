#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots a whole Debian 12 (systemd, pure cgroup v2, AppArmor) in an emulated machine, installs the Debian
# package that `make package` left in dist/, and runs tests/machine/guest/ there: run.sh [room...], all without arguments.
#
# Environment: NODEAGENT_CACHE keeps kernel and disk; RUN narrows Go's tests; TIMEOUT is how many seconds the machine gets
# (7200), VERBOSE=1 shows passing tests, too. The journal, the console and what failed stay in dist/machine.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
root=${NODEAGENT_CACHE:-/var/cache/nodeagent}
cache=$root/kernels
kernel=6.1
patience=${TIMEOUT:-7200}
modules=(virtio_pci virtio_blk)
programs=(containerd containerd-shim-runc-v2 ctr runc kubelet kubectl coredns agnhost)

say() { printf '%s\n' "machine: $*" >&2; }
. "$top/tests/kernels/fetch.sh"
. "$top/tests/machine/image.sh"

# What the machine gets on its second disk: the package, the peers' programs, the tests.
payload() { # directory
  local p room
  mkdir -p "$1/bin" "$1/tests"
  cp -r "$top/tests/machine/guest" "$1/guest"
  cp "$(ls -t "$top"/dist/nodeagent_*.deb | head -n 1)" "$1/" # the one just made
  for p in "${programs[@]}"; do cp -L "$root/bin/$p" "$1/bin/"; done
  cp "$top/bin/web" "$top/bin/cluster" "$(command -v busybox)" "$(command -v bash-static)" "$1/bin/"
  cp "$(ls -t "$top"/dist/nodeagent-*.oci.tar | head -n 1)" "$1/image.tar"
  cp "$top/dist/nodeagent.yaml" "$1/image.yaml"
  later "$1"
  (cd "$top/tests/e2e" && CGO_ENABLED=0 go test -c -trimpath -ldflags '-s -w' -o "$1/tests/cri" ./cri)
  printf '%s\n' "ROOMS='${*:2}'" "RUN='${RUN:-}'" "VERBOSE='${VERBOSE:-}'" >"$1/guest/settings"
}

# The image and the objects of a later version, to upgrade to.
later() { # directory
  local bin=$work/later
  mkdir -p "$bin"
  cp "$top"/bin/nodeagent-{cni,shim} "$bin/"
  (
    cd "$top"
    CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags '-s -w -X main.version=v9.0.0' -o "$bin/" ./cmd/nodeagent
    go run ./packaging/build --version v9.0.0 --bin "$bin" --out "$bin/dist" >/dev/null
  )
  cp "$bin"/dist/*.oci.tar "$1/later.tar"
  cp "$bin/dist/nodeagent.yaml" "$1/later.yaml"
  rm -rf "$bin"
}

initrd() { # kernel directory, release
  local dir=$work/initrd f
  mkdir -p "$dir"/{bin,dev,proc,root,lib}
  cp "$(command -v busybox)" "$dir/bin/busybox"
  cp "$top/tests/machine/initrd" "$dir/init"
  for m in "${modules[@]}"; do modprobe -d "$1" -S "$2" --show-depends "$m"; done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
    while read -r f; do cp "$f" "$dir/lib/"; echo "/lib/${f##*/}"; done >"$dir/modules"
  (cd "$dir" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd.gz"
}

boot() { # kernel directory, release, disk
  timeout "$patience" qemu-system-x86_64 -accel "${ACCEL:-tcg,thread=multi}" -cpu max -smp 2 -m 4096 -nodefaults -no-user-config -display none \
    -no-reboot -kernel "$1/boot/vmlinuz-$2" -initrd "$work/initrd.gz" \
    -append "console=ttyS0 panic=-1 quiet no_timer_check systemd.show_status=0 apparmor=1 security=apparmor" \
    -drive "file=$3,if=virtio,format=raw,snapshot=on" -drive "file=$work/payload.ext4,if=virtio,format=raw,readonly=on" \
    -nic user,model=virtio-net-pci -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
    -serial "file:$out/console.log" -serial stdio </dev/null
}

main() {
  local p dir rel disk verdict t0
  for p in qemu-system-x86_64 busybox bash-static mmdebstrap mke2fs modprobe depmod dpkg; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$p" >/dev/null || { say "no $p: tools/deps.sh --emulator installs it"; exit 1; }
  done
  compgen -G "$top/dist/nodeagent_*.deb" >/dev/null || { say "no package in dist/: make package makes it"; exit 1; }
  out=$top/dist/machine
  mkdir -p "$cache" "$out"
  work=$(mktemp -d "$cache/.run-XXXXXX")
  export TMPDIR=$work # for the disk's changes
  trap 'rm -rf "$work"' EXIT
  dir=$(fetch "$kernel")
  rel=$(release "$dir")
  disk=$(image "$dir")
  payload "$work/payload" "$@"
  mke2fs -q -t ext4 -d "$work/payload" "$work/payload.ext4" 1500M >&2
  initrd "$dir" "$rel"
  t0=$SECONDS
  say "$rel: booting; console in dist/machine/console.log"
  boot "$dir" "$rel" "$disk" | sed -u 's|\r$||' | tee "$out/tests.log" | if [ -n "${VERBOSE:-}" ]; then cat; else grep --line-buffered -avE '^=== |^ *--- PASS|^PASS$'; fi || true
  verdict=$(sed -n 's/^machine: exit \([0-9]*\)$/\1/p' "$out/tests.log")
  [ -n "$verdict" ] || { say "FAILED: it did not finish within $patience s; see dist/machine"; exit 1; }
  [ "$verdict" = 0 ] || { say "FAILED after $((SECONDS - t0)) s; see dist/machine"; exit 1; }
  say "all passed in $((SECONDS - t0)) s"
}

main "$@"
