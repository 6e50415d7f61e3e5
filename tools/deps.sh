#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes what building and testing nodeagent needs: Debian packages, and programs
# built from the Go module proxy at the versions that tools/go.mod, tools/csi/go.mod,
# tools/lint/go.mod and tests/e2e/go.mod pin.
#
#   tools/deps.sh [component...]      all of the default components without arguments
#   tools/deps.sh --list              what there is, and whether it is made
#   tools/deps.sh --emulator          only the Debian packages of `make test-kernels` and `make test-machine`
#
# Each component goes to a directory of its own in the cache, named by its version and
# a hash of its recipe, and cache/bin holds links to them: an unchanged component is never built twice,
# an interrupted run goes on where it stopped, and two runs at once wait for each other.
#
# Environment: NODEAGENT_CACHE (default /var/cache/nodeagent), NODEAGENT_DEPS_APT=0 leaves apt alone.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${NODEAGENT_CACHE:-/var/cache/nodeagent}

packages=(
  bash-static bind9-dnsutils bpftool btrfs-progs busybox-static ca-certificates clang-19 clang-format-19 conntrack criu crun curl
  dosfstools e2fsprogs erofs-utils ethtool fio gcc git iproute2 iptables kmod libbpf-dev libc6-dev libelf-dev
  libseccomp-dev linux-libc-dev lld-19 llvm-19 make netcat-openbsd nftables pkg-config procps rpm socat squashfs-tools util-linux
  wget xfsprogs
)

# Not installed unless asked for by name: for one target.
emulator=(bash-static busybox-static e2fsprogs iproute2 kmod lvm2 mmdebstrap qemu-system-x86 systemd thin-provisioning-tools util-linux xfsprogs)

# component | module directory | module that carries the version | programs it makes
components='
containerd              | tools      | github.com/containerd/containerd/v2    | containerd ctr containerd-shim-runc-v2
runc                    | tools      | github.com/opencontainers/runc         | runc
cni-plugins             | tools      | github.com/containernetworking/plugins | bridge host-local loopback portmap ptp tuning
coredns                 | tests/e2e  | github.com/coredns/coredns             | coredns
etcd                    | tests/e2e  | go.etcd.io/etcd/server/v3              | etcd
kube-apiserver          | tests/e2e  | k8s.io/kubernetes                      | kube-apiserver
kube-controller-manager | tests/e2e  | k8s.io/kubernetes                      | kube-controller-manager
kube-scheduler          | tests/e2e  | k8s.io/kubernetes                      | kube-scheduler
kubelet                 | tests/e2e  | k8s.io/kubernetes                      | kubelet
kubectl                 | tests/e2e  | k8s.io/kubernetes                      | kubectl
kube-proxy              | tests/e2e  | k8s.io/kubernetes                      | kube-proxy
pause                   | tests/e2e  | k8s.io/kubernetes                      | pause
agnhost                 | tests/e2e  | k8s.io/kubernetes                      | agnhost
regression-issue-74839  | tests/e2e  | k8s.io/kubernetes                      | regression-issue-74839
cnitool                 | tests/e2e  | github.com/containernetworking/cni     | cnitool
csi-sanity              | tests/e2e  | github.com/kubernetes-csi/csi-test/v5  | csi-sanity
snapshot-controller     | tools/csi  | github.com/kubernetes-csi/external-snapshotter/v8 | snapshot-controller
golangci-lint           | tools/lint | github.com/golangci/golangci-lint/v2   | golangci-lint
e2e.test                | tests/e2e  | k8s.io/kubernetes                      | e2e.test
e2e_node.test           | tests/e2e  | k8s.io/kubernetes                      | e2e_node.test
ginkgo                  | tests/e2e  | github.com/onsi/ginkgo/v2              | ginkgo
'
# Not made unless asked for by name: minutes for one target.
on_demand=' e2e.test e2e_node.test ginkgo regression-issue-74839 '

say() { printf '%s\n' "deps: $*" >&2; }

field() { # component number
  awk -F'|' -v c="$1" -v n="$2" '{ gsub(/^ +| +$/, "", $1) } $1 == c { gsub(/^ +| +$/, "", $n); print $n }' <<<"$components"
}

names() { awk -F'|' 'NF > 1 { gsub(/ /, "", $1); print $1 }' <<<"$components"; }

pinned() { # go.mod module
  awk -v m="$2" '{ sub(/^require /, "") } $1 == m && $2 ~ /^v/ { print $2; exit }' "$1"
}

# How a component is built: environment, then the arguments of `go build`, one a line.
recipe() { # component version
  local x='' p minor
  case $1 in
  containerd)
    printf '%s\n' CGO_ENABLED=0 -- -tags=urfave_cli_no_docs \
      "-ldflags=-s -w -X github.com/containerd/containerd/v2/version.Version=$2" \
      github.com/containerd/containerd/v2/cmd/{containerd,ctr,containerd-shim-runc-v2}
    ;;
  runc) printf '%s\n' CGO_ENABLED=1 -- -tags=seccomp,urfave_cli_no_docs '-ldflags=-s -w' github.com/opencontainers/runc ;;
  cni-plugins)
    printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' github.com/containernetworking/plugins/plugins/{main/bridge,ipam/host-local,main/loopback,meta/portmap,main/ptp,meta/tuning}
    ;;
  pause) printf '%s\n' gcc -Os -Wall -static -s "-DVERSION=${2#v}" build/pause/linux/pause.c ;;
  coredns | etcd) printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' "./cmd/$1" ;;
  ginkgo) printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' github.com/onsi/ginkgo/v2/ginkgo ;;
  cnitool) printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' github.com/containernetworking/cni/cnitool ;;
  csi-sanity) printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity ;;
  snapshot-controller)
    printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller
    ;;
  golangci-lint)
    printf '%s\n' CGO_ENABLED=0 -- "-ldflags=-s -w -X main.version=${2#v}" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
    ;;
  agnhost | regression-issue-74839) printf '%s\n' CGO_ENABLED=0 -- '-ldflags=-s -w' "k8s.io/kubernetes/test/images/$1" ;;
  e2e.test | e2e_node.test | kube*)
    minor=${2#v1.}
    for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
      x+=" -X $p.gitVersion=$2 -X $p.gitMajor=1 -X $p.gitMinor=${minor%%.*}"
    done
    p=k8s.io/kubernetes/cmd/$1
    [ "$1" = e2e.test ] && p=k8s.io/kubernetes/test/e2e
    [ "$1" = e2e_node.test ] && p=k8s.io/kubernetes/test/e2e_node
    printf '%s\n' CGO_ENABLED=0 -- "-ldflags=-s -w$x" "$p"
    ;;
  esac
}

go_version() { # the go command's own version, without paying for starting it
  local root
  root=$(dirname "$(dirname "$(readlink -f "$(command -v go)")")")
  if [ -r "$root/VERSION" ]; then head -n1 "$root/VERSION"; else go env GOVERSION; fi
}

place() { # component version
  printf '%s/%s-%s-%s' "$cache" "$1" "$2" "$({ recipe "$1" "$2"; sources "$1"; echo "$goversion"; } | sha256sum | cut -c1-8)"
}

sources() { # component: a main of our own says what is in it
  cat "$top/$(field "$1" 2)/cmd/$1"/*.go 2>/dev/null || true
}

made() { # directory programs
  local p
  for p in $2; do [ -x "$1/$p" ] || return 1; done
}

enter() { # directory programs: links in bin, replaced atomically
  local p
  for p in $2; do
    [ "$(readlink "$cache/bin/$p" 2>/dev/null)" = "../${1##*/}/$p" ] && continue
    ln -sfn "../${1##*/}/$p" "$cache/bin/.$p.new" && mv -Tf "$cache/bin/.$p.new" "$cache/bin/$p"
  done
}

compile_c() { # component version directory
  local src args
  cd "$top/$(field "$1" 2)"
  src=$(GOWORK=off go list -m -f '{{.Dir}}' "$(field "$1" 3)")
  mapfile -t args < <(recipe "$1" "$2")
  rm -rf "$3.part" && mkdir -p "$3.part"
  cd "$src"
  "${args[@]}" -o "$3.part/$1"
  rm -rf "$3" && mv "$3.part" "$3"
}

compile() { # component version directory: into a directory beside it, renamed when whole
  if [ "$1" = pause ]; then compile_c "$@"; return; fi
  local part="$3.part" line env=() args=() seen='' verb=(build)
  while IFS= read -r line; do
    if [ "$line" = -- ]; then seen=1; elif [ -z "$seen" ]; then env+=("$line"); else args+=("$line"); fi
  done < <(recipe "$1" "$2")
  rm -rf "$part" && mkdir -p "$part"
  local out="$part/"
  case $1 in *.test) verb=(test -c -vet=off) out="$part/$1" ;; esac
  cd "$top/$(field "$1" 2)"
  env GOFLAGS=-mod=readonly GOWORK=off "${env[@]}" go "${verb[@]}" -trimpath -buildvcs=false -o "$out" "${args[@]}"
  if [ "$1" = snapshot-controller ]; then # and the API that it serves
    cp -r --no-preserve=mode "$(GOWORK=off go list -m -f '{{.Dir}}' github.com/kubernetes-csi/external-snapshotter/client/v8)/config/crd" "$part/crd"
  fi
  rm -rf "$3" && mv "$part" "$3"
}

# Whether a log tells of what may pass by itself: a proxy's hiccup, a lock that somebody holds.
passing() { # log
  grep -qE 'dial tcp|i/o timeout|TLS handshake|connection (reset|refused|timed out)|unexpected EOF|stream error|no such host|server misbehaving|[ :](429|50[0-9])[ :]|Temporary failure|Could not get lock|Unable to (acquire|lock)|Failed to fetch|Hash Sum mismatch' "$1"
}

# Runs a command in the background, shows how long it has been at it, and on failure its log's end. Tries again what may
# pass by itself. Called bare: where its failure is asked for, bash lets the command go on after a fault.
attend() { # label log command...
  local label=$1 log=$2 pid t0=$SECONDS rc shown=0 d try
  shift 2
  for try in 1 2 3; do
    ("$@") </dev/null >"$log" 2>&1 &
    pid=$! rc=0
    while kill -0 "$pid" 2>/dev/null; do
      d=$((SECONDS - t0))
      if [ -t 2 ]; then
        printf '\r\033[Kdeps: %s … %d s' "$label" "$d" >&2
      elif [ $((d / 30)) -gt "$shown" ]; then
        shown=$((d / 30))
        say "$label … $d s"
      fi
      sleep 0.2
    done
    wait "$pid" || rc=$?
    [ -t 2 ] && printf '\r\033[K' >&2
    if [ "$rc" = 0 ] || [ "$try" = 3 ] || ! passing "$log"; then break; fi
    say "$label failed (exit $rc) with what may pass; trying again: $(tail -n 1 "$log")"
    sleep $((try * 10))
  done
  d=$((SECONDS - t0))
  if [ "$rc" != 0 ]; then
    say "$label FAILED after $d s (exit $rc); the end of $log:"
    tail -n 25 "$log" | sed 's/^/    /' >&2
    space
    return "$rc"
  fi
  say "$label done in $d s"
}

# Says when the disk is so full that a build may fail for it.
space() {
  local dir free
  for dir in "$cache" "$(go env GOCACHE)" "$(go env GOMODCACHE)"; do
    while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
    free=$(df --output=avail -BG "$dir" | tail -n 1 | tr -dc 0-9)
    if [ "$free" -lt 15 ]; then say "only $free GB are free for $dir; everything from nothing takes up to 15"; fi
  done
}

apt_missing() {
  local have p
  # It fails for a package that it has never heard of, which is one that is missing.
  have=$({ dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${packages[@]}" 2>/dev/null || true; } | sed -n 's/^ii *//p')
  for p in "${packages[@]}"; do grep -qxF "$p" <<<"$have" || echo "$p"; done
}

apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  local o=(-o Acquire::Retries=3 -o DPkg::Lock::Timeout=600)
  apt-get "${o[@]}" update || echo "some lists are old; what is missing may be in the others"
  apt-get "${o[@]}" install -y --no-install-recommends "$@"
}

debian() {
  [ "${NODEAGENT_DEPS_APT:-1}" = 1 ] || return 0
  command -v dpkg-query >/dev/null || { say "no dpkg here; install by hand: ${packages[*]}"; return 0; }
  local missing
  mapfile -t missing < <(apt_missing)
  [ "${#missing[@]}" = 0 ] && return 0
  [ "$(id -u)" = 0 ] || { say "missing Debian packages, and only root can install them: ${missing[*]}"; return 1; }
  attend "Debian packages (${#missing[@]}: ${missing[*]})" "$cache/log/apt.log" apt_install "${missing[@]}"
}

# Debian 12's CRIU does not know the vvar_vclock of Linux 6.13 and later. Where it does not work, Debian 13's is put into
# the cache with the libc that it wants; bin/criu runs it. Without either, the tests of checkpoints find the refusal.
newer_criu() {
  local d=$cache/criu-trixie o
  criu check >/dev/null 2>&1 && return
  [ -x "$d/criu" ] || fetch_criu "$d" || return
  "$d/criu" check && enter "$d" criu
}

fetch_criu() { # directory; every step says whether it worked, for the caller goes on without it
  local part=$1.part o
  rm -rf "$part" && mkdir -p "$part"/{lists/partial,etc,root} || return
  printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: trixie' 'Components: main' \
    'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' >"$part/etc/trixie.sources"
  o=(-q -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$part/etc" -o "Dir::State::lists=$part/lists"
    -o "Dir::Cache=$part" -o APT::Sandbox::User=root -o Acquire::Retries=3)
  apt-get "${o[@]}" update && (cd "$part" && apt-get "${o[@]}" download criu libc6) || return
  for o in "$part"/*.deb; do dpkg -x "$o" "$part/root" || return; done
  printf '%s\n' '#!/bin/sh' "r=$1/root; l=usr/lib/x86_64-linux-gnu" \
    'exec "$r/$l/ld-linux-x86-64.so.2" --library-path "$r/$l:/lib/x86_64-linux-gnu:/$l" "$r/usr/sbin/criu" "$@"' >"$part/criu"
  chmod +x "$part/criu" && rm -rf "$1" "$part"/{lists,etc,*.deb,*.bin} && mv "$part" "$1"
}

# What `go test` will want from the module proxy, fetched here, where it is tried again.
modules() {
  local m
  for m in . tests/e2e tests/oracle; do
    cd "$top/$m"
    GOFLAGS=-mod=readonly GOWORK=off go list -deps -test ./... >/dev/null
  done
}

fetch_modules() {
  local now mods
  mods=$(go env GOMODCACHE)
  now=$(cat "$top"/{,tests/e2e/,tests/oracle/}go.sum | sha256sum | cut -c1-16)
  [ -d "$mods/cache" ] && [ "$(cat "$mods/.nodeagent-modules" 2>/dev/null)" = "$now" ] && return
  attend "Go modules" "$cache/log/modules.log" modules
  echo "$now" >"$mods/.nodeagent-modules"
}

list() {
  local c v d
  for c in $(names); do
    v=$(pinned "$top/$(field "$c" 2)/go.mod" "$(field "$c" 3)")
    d=$(place "$c" "$v")
    made "$d" "$(field "$c" 4)" && printf '%-24s %-9s %s\n' "$c" "$v" "$d" || printf '%-24s %-9s %s\n' "$c" "$v" "not made yet"
  done
}

main() {
  command -v go >/dev/null || { say "no go command in PATH: install Go $(awk '$1 == "go" { print $2 }' "$top/go.mod") or newer first (https://go.dev/dl)"; exit 1; }
  goversion=$(go_version)
  [ "${1:-}" = --list ] && { list; exit; }
  local c known
  known=" $(names | tr '\n' ' ') "
  for c in "$@"; do
    [ "$*" = --emulator ] && break
    case $known in *" $c "*) ;; *) say "no component $c; there are:$known"; exit 2 ;; esac
  done
  mkdir -p "$cache/bin" "$cache/log" || { say "cannot write to $cache: run as root, or set NODEAGENT_CACHE"; exit 1; }
  exec 9>"$cache/.lock"
  flock -n 9 || { say "another run holds $cache/.lock; waiting for it"; flock 9; }
  [ "${1:-}" = --emulator ] && { packages=("${emulator[@]}"); debian; exit; }

  local todo=() wanted=("$@") v d i=0 built=0
  if [ $# = 0 ]; then
    debian
    fetch_modules
    newer_criu >"$cache/log/criu.log" 2>&1 || say "CRIU does not work on this kernel, checkpoints are tested as refused: $cache/log/criu.log"
    for c in $(names); do case $on_demand in *" $c "*) ;; *) wanted+=("$c") ;; esac; done
  fi
  for c in "${wanted[@]}"; do
    v=$(pinned "$top/$(field "$c" 2)/go.mod" "$(field "$c" 3)")
    [ -n "$v" ] || { say "$c: $(field "$c" 2)/go.mod does not pin $(field "$c" 3)"; exit 1; }
    d=$(place "$c" "$v")
    if made "$d" "$(field "$c" 4)"; then enter "$d" "$(field "$c" 4)"; else todo+=("$c|$v|$d"); fi
  done
  [ "${#todo[@]}" = 0 ] || space
  for c in "${todo[@]}"; do
    IFS='|' read -r c v d <<<"$c"
    i=$((i + 1))
    attend "[$i/${#todo[@]}] $c $v" "$cache/log/$c.log" compile "$c" "$v" "$d"
    enter "$d" "$(field "$c" 4)"
    built=$((built + 1))
  done
  say "${#wanted[@]} components in $cache/bin ($built built now)"
}

main "$@"
