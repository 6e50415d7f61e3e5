# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Off the machine again.

test_remove() {
  mkdir -p /var/lib/nodeagent/pools/keep && echo data >/var/lib/nodeagent/pools/keep/file
  dpkg -r nodeagent
  ! systemctl is-active nodeagent || fail "the unit runs after removal"
  [ -f /etc/nodeagent/config.yaml ] || fail "removal took the configuration"
  dpkg -i /machine/nodeagent_*.deb
  same "the unit that was enabled before" "$(systemctl is-enabled nodeagent)" enabled
  systemctl disable nodeagent
  dpkg -r nodeagent
  dpkg -i /machine/nodeagent_*.deb
  same "the unit that a person had disabled" "$(systemctl is-enabled nodeagent)" disabled
  up nodeagent
}

test_purge() {
  dpkg -P nodeagent
  [ ! -e /etc/nodeagent/config.yaml ] || fail "purge leaves the configuration"
  [ ! -e /usr/bin/nodeagent ] || fail "purge leaves the program"
  [ ! -e /lib/systemd/system/nodeagent.service ] || fail "purge leaves the unit"
  same "a volume's data" "$(cat /var/lib/nodeagent/pools/keep/file)" data
  same "failed units" "$(systemctl list-units --failed --no-legend --plain)" ""
  ! systemctl cat nodeagent || fail "systemd still knows the unit"
}
