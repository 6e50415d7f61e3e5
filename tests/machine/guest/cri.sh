# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/e2e/cri on this machine's nodeagent.

# What a Debian has not by itself, and the tests of limits want.
test_spare() {
  fallocate -l 256M /var/swap
  chmod 600 /var/swap
  mkswap /var/swap
  swapon /var/swap
  echo 16 >/proc/sys/vm/nr_hugepages
  same "huge pages" "$(cat /proc/sys/vm/nr_hugepages)" 16
}

test_cri() {
  local out=/tmp/cri.log
  (cd /tmp && NODEAGENT_E2E_HERE=1 /machine/tests/cri -test.v -test.timeout 40m ${RUN:+-test.run "$RUN"}) 2>&1 | tee /dev/console >$out || { set +x; grep -vE '^=== |^ *--- PASS' $out; exit 1; }
  grep -c '^--- PASS' $out
}
