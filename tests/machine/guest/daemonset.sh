# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The DaemonSet in mode host, on a node whose runtime is containerd's own CRI plugin: its pod puts the unit on the
# node, the kubelet goes over to it, the next image upgrades it, and it outlives the pod. No API server: the
# pod is a static one, and what it would get from there is directories of the node.

. ./kubelet.sh
program=/opt/nodeagent/bin/nodeagent
given=/var/lib/given

# Prints the DaemonSet's pod.
template() { # file with the release's objects
  kubectl label --local -f "$1" -o json machine=here | jq -s --arg given $given '
    [.[] | if .kind == "List" then .items[] else . end | select(.kind == "DaemonSet")][0].spec.template |
    .apiVersion = "v1" | .kind = "Pod" | .metadata.name = "nodeagent" |
    del(.spec.serviceAccountName, .spec.automountServiceAccountToken) |
    .spec.containers[0].command |= map(select(test("^--(token|ca)=") | not)) |
    .spec.containers[0].volumeMounts |= map(select(.name != "identity")) |
    .spec.volumes |= map(select(.name != "identity") | if .name == "config" then {name, hostPath: {path: $given}} else . end)'
}

# Says whether the node has the programs of an image, which is named as their version.
installed() { # file with the release's objects
  "$program" version | grep -qF "$(sed -n 's/.*image: "[^"]*:\([^":]*\)"$/\1/p' "$1")"
}
up_to() { [ "$(property nodeagent MainPID)" != "$1" ] && systemctl is-active nodeagent && nodeagent status; } # the PID that it had
gone() { [ "$(pods | jq --arg n "$1-machine" '[.items[]? | select(.metadata.name == $n)] | length')" = 0 ]; } # pod
nodeagent() { "$program" "$@"; }

test_before() {
  systemctl stop kubelet || true
  dpkg -P nodeagent || true
  rm -rf /etc/kubernetes/kubelet.conf.d /etc/systemd/system/kubelet.service.d $manifests
  install -m 755 /machine/bin/containerd-shim-runc-v2 /usr/local/bin/
  cat >/etc/containerd/config.toml <<'EOF'
version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = true
EOF
  systemctl restart containerd
  mkdir -p $given
  cat >$given/config.yaml <<'EOF'
apiVersion: nodeagent.dev/v1alpha1
kind: NodeAgentConfiguration
network: {podCIDRs: [10.244.1.0/24]}
storage: {enabled: false}
kubernetes: {manifests: /etc/nodeagent/manifests}
EOF
  mkdir -p /etc/nodeagent/manifests
  ctr -n k8s.io images import /machine/image.tar
  settle_kubelet
  systemctl daemon-reload
  up kubelet
}

# The pod runs on containerd's plugin, and makes nodeagent a unit.
test_install() {
  template /machine/image.yaml >$manifests/nodeagent.yaml
  await 240 running nodeagent
  installed /machine/image.yaml
  same "the unit" "$(systemctl is-active nodeagent) $(systemctl is-enabled nodeagent)" "active enabled"
  same "what the unit runs" "$(readlink "/proc/$(property nodeagent MainPID)/exe")" $program
  [ -x /opt/cni/bin/nodeagent-cni ] || fail "no CNI program"
  nodeagent status
  ! pgrep -x nodeagent-shim || fail "a pod is nodeagent's before the kubelet asks it"
}

# What the kubelet does at its next start, on a node that was drained.
test_take_over() {
  local pid
  pid=$(property nodeagent MainPID)
  rm $manifests/nodeagent.yaml
  await 120 gone nodeagent
  same "the unit, without the pod" "$(systemctl is-active nodeagent) $(property nodeagent MainPID)" "active $pid"
  systemctl restart kubelet
  await 60 eval 'journal kubelet | grep "Using cgroup driver setting received from the CRI runtime"'
  template /machine/image.yaml >$manifests/nodeagent.yaml
  pod steady '{limits: {memory: 64Mi}}' >$manifests/steady.yaml
  await 240 running nodeagent
  await 120 running steady
  pgrep -x nodeagent-shim
  same "the unit, for the same image again" "$(property nodeagent MainPID)" "$pid"
  curl -fsS -m 5 "http://$(address steady):8080/etc/hostname" | grep -q steady
}

# A file that somebody removes comes back.
test_watch() {
  rm /opt/cni/bin/nodeagent-cni
  await 60 test -x /opt/cni/bin/nodeagent-cni
}

steady() { # after what
  same "steady's process after $1" "$(head -n 1 "$(cgroup steady)/cgroup.procs")" "$(cat /tmp/pid-steady)"
  curl -fsS -m 5 "http://$(address steady):8080/etc/hostname" | grep -q steady
}

# The pod of the next image puts its programs in place and restarts the unit that runs the pod itself.
test_upgrade() {
  local pid
  pid=$(property nodeagent MainPID)
  head -n 1 "$(cgroup steady)/cgroup.procs" >/tmp/pid-steady
  ctr -n k8s.io images import /machine/later.tar
  template /machine/later.yaml >$manifests/nodeagent.yaml
  await 240 installed /machine/later.yaml
  await 60 up_to "$pid"
  same "what the unit runs" "$(readlink "/proc/$(property nodeagent MainPID)/exe")" $program
  await 240 running nodeagent
  steady "the upgrade"
}

test_pod_deleted() {
  rm $manifests/nodeagent.yaml
  await 120 gone nodeagent
  same "the unit" "$(systemctl is-active nodeagent) $(systemctl is-enabled nodeagent)" "active enabled"
  steady "the pod's end"
  rm $manifests/steady.yaml
  await 120 gone steady
  systemctl stop kubelet
}

test_uninstall() {
  mkdir -p /var/lib/nodeagent/pools/keep && echo data >/var/lib/nodeagent/pools/keep/file
  echo '# mine' >>/etc/nodeagent/config.yaml
  nodeagent uninstall >/tmp/uninstall
  grep -q 'config.yaml *kept' /tmp/uninstall || fail "$(cat /tmp/uninstall)"
  ! systemctl cat nodeagent || fail "systemd still knows the unit"
  for f in $program /opt/nodeagent/bin/nodeagent-shim /opt/cni/bin/nodeagent-cni /etc/kubernetes/kubelet.conf.d/50-nodeagent.conf \
    /etc/systemd/system/kubelet.service.d/20-nodeagent.conf; do
    [ ! -e $f ] || fail "$f is left"
  done
  same "what was changed since" "$(tail -n 1 /etc/nodeagent/config.yaml)" "# mine"
  same "a volume's data" "$(cat /var/lib/nodeagent/pools/keep/file)" data
  same "failed units" "$(systemctl list-units --failed --no-legend --plain)" ""
}
