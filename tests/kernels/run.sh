#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Boots kernels of Debian, the oldest that nodeagent promises first, in an emulated
# machine and runs the data path's root tests in each, and those of storage for what the machine
# that develops it lacks (build tag kernels, TestKernel…): run.sh [kernel...], 6.1 without arguments.
#
# Environment: NODEAGENT_CACHE keeps the kernels; ROOMS and RUN narrow the tests (packages; go test's
# -run), TIMEOUT is how many seconds one machine gets (5400), VERBOSE=1 shows passing tests and the kernel's log, too.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${NODEAGENT_CACHE:-/var/cache/nodeagent}/kernels
modules=(veth bridge sch_ingress cls_bpf vxlan brd loop dm-snapshot dm-thin-pool xfs quota_v2)
programs=(ip tc nsenter modprobe mke2fs mkfs.ext4 e2fsck resize2fs mkfs.xfs lvm thin_check)
patience=${TIMEOUT:-5400}
rooms=(${ROOMS:-bpf dataplane dataplane/attach csi/volume})
skip='^TestRoot(Takeover|PolicyBesideKubeProxy)$' # neither kube-proxy is there, nor what it needs

say() { printf '%s\n' "kernels: $*" >&2; }
. "$top/tests/kernels/fetch.sh"

# Fills a directory with what all kernels have in common: programs, their libraries, tests.
furnish() { # root
  local p lib room only
  mkdir -p "$1"/{bin,dev,etc,lib,proc,sys,tmp,tests}
  cp "$(command -v busybox)" "$1/bin/busybox"
  cp "$(command -v bash-static)" "$1/bin/sh" # for busybox' own prefers its ip, which has no veth

  cp "$top/tests/kernels/init" "$1/init"
  for p in "${programs[@]}"; do
    p=$(PATH=$PATH:/usr/sbin:/sbin command -v "$p")
    cp -L "$p" "$1/bin/${p##*/}"
    ldd "$p" | grep -o '/[^ ]*' | while read -r lib; do cp -L --parents "$lib" "$1"; done
  done
  for room in "${rooms[@]}"; do
    mkdir -p "$1/tests/$room"
    (cd "$top" && CGO_ENABLED=0 go test -c -tags kernels -trimpath -ldflags '-s -w' -o "$1/tests/$room/run" "./$room")
    [ -d "$top/$room/testdata" ] && cp -r "$top/$room/testdata" "$1/tests/$room/"
    only=^TestRoot
    [ "${room%%/*}" = csi ] && only=^TestKernel # the others have passed where they were written
    printf '%s %s %s\n' "$room" "${RUN:-$only}" "$skip" >>"$1/tests/rooms"
  done
  printf '%s\n' "${modules[@]}" >"$1/etc/modules"
  # Nobody but lvm itself makes device nodes there.
  mkdir -p "$1/etc/lvm"
  printf '%s\n' 'activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }' 'devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" }' \
    'global { event_activation = 0 }' >"$1/etc/lvm/lvm.conf"
}

# The machine's clock counts its instructions instead of our time (-icount): however little of a busy host it gets, a second in
# there is long enough for a second's work, and when all in there wait, the clock goes on at once.
# Runs the tests on one kernel; fails when one fails, or the machine does not get to the end.
boot() { # kernel
  local dir rel root=$work/root-$1 log=$work/log-$1 m f t0=$SECONDS verdict
  dir=$(fetch "$1") || return 1
  rel=$(release "$dir")
  cp -r "$work/root" "$root"
  for m in "${modules[@]}"; do modprobe -d "$dir" -S "$rel" --show-depends "$m"; done | awk '$1 == "insmod" { print $2 }' | sort -u |
    while read -r f; do install -D "$f" "$root${f#"$dir"}"; done
  cp "$dir/lib/modules/$rel"/modules.{dep,dep.bin,alias,alias.bin,builtin,builtin.bin,builtin.modinfo,builtin.alias.bin,symbols.bin,order} \
    "$root/lib/modules/$rel/"
  (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/initrd-$1"
  say "$rel: booting"
  timeout "$patience" qemu-system-x86_64 -accel tcg -icount shift=0,sleep=off -cpu max -smp 1 -m 3072 -nodefaults -no-user-config -display none \
    -no-reboot -serial stdio -kernel "$dir/boot/vmlinuz-$rel" -initrd "$work/initrd-$1" \
    -append "console=ttyS0 panic=-1 ${VERBOSE:+ignore_loglevel }${VERBOSE:-quiet}" </dev/null |
    sed -u 's|\r$||' | tee "$log" | if [ -n "${VERBOSE:-}" ]; then cat; else grep --line-buffered -avE '^=== |^ *--- PASS|^PASS$'; fi || true
  verdict=$(sed -n 's/^kernels: exit \([0-9]*\)$/\1/p' "$log")
  if [ -z "$verdict" ]; then
    say "$rel: the machine did not finish within $patience s; the end of what it said:"
    tail -n 25 "$log" >&2
    return 1
  fi
  say "$rel: $(grep -ac '^--- PASS' "$log") tests passed, $(grep -ac '^--- FAIL' "$log") failed, $(grep -ac '^--- SKIP' "$log") skipped in $((SECONDS - t0)) s"
  [ "$verdict" = 0 ]
}

main() {
  local p failed=0 k
  for p in qemu-system-x86_64 busybox bash-static modprobe depmod dpkg "${programs[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$p" >/dev/null || { say "no $p: tools/deps.sh --emulator installs it"; exit 1; }
  done
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.run-XXXXXX")
  trap 'rm -rf "$work"' EXIT
  furnish "$work/root"
  for k in "${@:-6.1}"; do (boot "$k") || failed=1; done
  exit "$failed"
}

main "$@"
