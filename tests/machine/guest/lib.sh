# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# What the rooms' tests say it with.

fail() { echo "FAIL: $*"; exit 1; }

same() { # what got want
  [ "$2" = "$3" ] || fail "$1 is '$2', want '$3'"
}

# Waits until a command succeeds.
await() { # seconds command...
  local end=$((SECONDS + $1)) -
  shift
  set +x
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { "$@" || true; fail "never: $*"; }
    sleep 1
  done
}

property() { systemctl show -P "$2" "$1"; } # unit property

# Prints a unit's log since it was started last.
journal() { journalctl -q --no-pager -o cat "_SYSTEMD_INVOCATION_ID=$(property "$1" InvocationID)"; }

# Starts a unit and shows why, when it does not come up.
up() { # unit
  systemctl start "$1" || { systemctl status --no-pager -l "$1" || true; journalctl -q --no-pager -u "$1" -n 40; fail "$1 does not start"; }
}

# Gives the machine what a Debian has not by itself, and limits are tested with: swap and huge pages.
spare() {
  [ -e /var/swap ] || { fallocate -l 256M /var/swap && chmod 600 /var/swap && mkswap /var/swap; }
  grep -q /var/swap /proc/swaps || swapon /var/swap
  echo 16 >/proc/sys/vm/nr_hugepages
  same "huge pages" "$(cat /proc/sys/vm/nr_hugepages)" 16
}
