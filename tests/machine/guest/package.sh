# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The Debian package on a machine whose containerd is a unit of its own, as in docs/install.md.

test_containerd() {
  install -m 755 /machine/bin/{containerd,ctr,runc,kubectl} /usr/local/bin/
  install -m 755 /bin/true /usr/local/bin/containerd-shim-runc-v2 # nobody may run it
  mkdir -p /etc/containerd/certs.d/_default
  echo 'disabled_plugins = ["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]
version = 3' >/etc/containerd/config.toml
  printf '[host."http://10.99.0.1:5000"]\n  capabilities = ["pull", "resolve"]\n' >/etc/containerd/certs.d/_default/hosts.toml
  cat >/etc/systemd/system/containerd.service <<'EOF'
[Unit]
Description=containerd
After=local-fs.target
[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
LimitNOFILE=infinity
TasksMax=infinity
OOMScoreAdjust=-999
[Install]
WantedBy=multi-user.target
EOF
  systemctl daemon-reload
  up containerd
}

test_registry() {
  ip address add 10.99.0.1/32 dev lo
  install -m 755 -t /bin /machine/bin/{busybox,bash-static} # the images are made of them
  systemd-run -q --unit registry -p "Environment=HOME=/root" /machine/bin/cluster registry --base /var/tmp/cluster --bin /machine/bin --tools /machine/bin
  await 120 curl -fsS http://10.99.0.1:5000/v2/busybox/manifests/1
}

test_install() {
  dpkg -i /machine/nodeagent_*.deb
  same "the unit" "$(systemctl is-enabled nodeagent)" enabled
  same "the unit, before it is configured" "$(systemctl is-active nodeagent)" inactive
  dpkg --verify nodeagent
}

test_start() {
  cat >/etc/nodeagent/config.yaml <<'EOF'
apiVersion: nodeagent.dev/v1alpha1
kind: NodeAgentConfiguration
network:
  podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]
kubernetes:
  manifests: /etc/nodeagent/manifests
EOF
  mkdir -p /etc/nodeagent/manifests
  nodeagent config check -c /etc/nodeagent/config.yaml
  up nodeagent
  same Type "$(property nodeagent Type)" notify
  same KillMode "$(property nodeagent KillMode)" process
  same Delegate "$(property nodeagent Delegate)" yes
  journal nodeagent | grep -q 'msg=ready'
  systemctl status --no-pager nodeagent
  nodeagent status
}

test_doctor() {
  nodeagent doctor -o json >/tmp/doctor.json || { cat /tmp/doctor.json; fail "doctor is not content"; }
  # Linux 6.1 has no tcx and maps no tmpfs to user namespaces, and nothing can be done about it.
  same "what doctor finds" "$(jq -r '.[] | select(.level != "ok" and .detail != "no tcx").check' /tmp/doctor.json)" "user namespaces"
}

test_reload() {
  echo 'log: {level: debug}' >>/etc/nodeagent/config.yaml
  systemctl reload nodeagent
  await 10 eval 'journal nodeagent | grep -q msg=reloaded'
  echo 'node: {name: other}' >>/etc/nodeagent/config.yaml
  systemctl reload nodeagent
  await 10 eval 'journal nodeagent | grep "reload refused" | grep -q node.name'
  sed -i '/^node:/d' /etc/nodeagent/config.yaml
}

# A file with faults keeps it from starting, says why in the journal, and does so again for as long as it takes.
test_faulty() {
  cp /etc/nodeagent/config.yaml /tmp/good.yaml
  echo 'nonsense: true' >>/etc/nodeagent/config.yaml
  ! systemctl restart nodeagent || fail "it starts with a faulty file"
  journalctl -q --no-pager -o cat -u nodeagent | grep -q 'unknown field "nonsense"'
  cp /tmp/good.yaml /etc/nodeagent/config.yaml
  await 20 systemctl is-active nodeagent
}
