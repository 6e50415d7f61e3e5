# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The machine is what a node is, or the other rooms show nothing.

test_machine() {
  same "process 1" "$(cat /proc/1/comm)" systemd
  same "file system of /sys/fs/cgroup" "$(stat -fc %T /sys/fs/cgroup)" cgroup2fs
  same AppArmor "$(cat /sys/module/apparmor/parameters/enabled)" Y
  same "failed units" "$(systemctl list-units --failed --no-legend --plain)" ""
  for c in cpu cpuset io memory pids hugetlb; do grep -qw $c /sys/fs/cgroup/cgroup.controllers; done
  networkctl status | grep -q routable
}
