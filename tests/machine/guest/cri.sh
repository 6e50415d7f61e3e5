# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/e2e/cri on this machine's nodeagent.

test_cri() {
  local out=/tmp/cri.log
  spare
  (cd /tmp && NODEAGENT_E2E_HERE=1 /machine/tests/cri -test.v -test.timeout 40m ${RUN:+-test.run "$RUN"}) 2>&1 | tee /dev/console >$out || { set +x; grep -vE '^=== |^ *--- PASS' $out; exit 1; }
  grep -c '^--- PASS' $out
}
