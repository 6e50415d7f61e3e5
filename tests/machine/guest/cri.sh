# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/e2e/cri on this machine's nodeagent.

test_cri() {
  local out=/tmp/cri.log
  (cd /tmp && NODEAGENT_E2E_HERE=1 /machine/tests/cri -test.v -test.timeout 14m ${RUN:+-test.run "$RUN"}) >$out 2>&1 || { set +x; grep -vE '^=== |^ *--- PASS' $out; exit 1; }
  grep -c '^--- PASS' $out
}
