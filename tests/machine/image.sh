# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The disk of the emulated machine: Debian 12 with systemd, AppArmor and the kernel's modules, made once for each
# recipe and kernel. Sourced where top, cache, work and say are defined, with tests/kernels/fetch.sh.

debian=(
  systemd systemd-sysv dbus udev kmod bash procps util-linux ca-certificates libseccomp2 curl jq criu
  iproute2 iputils-ping apparmor e2fsprogs xfsprogs btrfs-progs lvm2 thin-provisioning-tools
)
# What a test does not wait for, nor a serial line shows.
masked=(getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer)

# Prints the disk's path; makes it if there is none of this recipe.
image() { # kernel directory
  local key disk
  key=$({ cat "$top/tests/machine/image.sh"; cat "$top"/tests/machine/etc/*; basename "$1"; } | sha256sum | cut -c1-12)
  disk=$cache/debian-12-$key.ext4
  if [ ! -f "$disk" ]; then
    say "making Debian's disk (two minutes, once)"
    bootstrap "$work/debian" >"$cache/debian.log" 2>&1 || { tail -n 20 "$cache/debian.log" >&2; return 1; }
    settle "$work/debian" "$1"
    rm -f "$cache"/debian-12-*.ext4 # of older recipes
    mke2fs -q -t ext4 -L root -d "$work/debian" "$work/disk" 6G >&2
    rm -rf "$work/debian"
    mv "$work/disk" "$disk"
  fi
  echo "$disk"
}

bootstrap() { # root
  local IFS=,
  mmdebstrap --mode=root --variant=minbase --skip=check/empty --aptopt='APT::Sandbox::User "root"' --include="${debian[*]}" bookworm "$1" \
    'deb http://deb.debian.org/debian bookworm main' 'deb http://deb.debian.org/debian-security bookworm-security main'
}

# Makes a bootstrapped tree a machine: a name, a network, modules, and the unit that runs the tests.
settle() { # root kernel directory
  local root=$1 u
  echo machine >"$root/etc/hostname"
  printf '%s\n' '127.0.0.1 localhost' '::1 localhost' '10.0.2.15 machine' >"$root/etc/hosts"
  echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
  : >"$root/etc/machine-id"
  cp "$top/tests/machine/etc/20-uplink.network" "$root/etc/systemd/network/"
  cp "$top/tests/machine/etc/machine-test.service" "$root/etc/systemd/system/"
  cp -r "$2/lib/modules" "$root/lib/"
  mkdir -p "$root/machine" "$root/etc/systemd/system"
  for u in "${masked[@]}"; do ln -sf /dev/null "$root/etc/systemd/system/$u"; done
  for u in machine-test systemd-networkd systemd-networkd-wait-online; do systemctl --root "$root" -q enable "$u.service"; done
  systemctl --root "$root" -q set-default multi-user.target
}
