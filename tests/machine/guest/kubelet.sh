# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# A kubelet on its own with static pods, on cgroups of systemd's: what the pods get, and that they outlive
# whatever becomes of the daemons below them.

manifests=/etc/kubernetes/manifests

pod() { # name resources: a manifest
  cat <<EOF
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: c
    image: registry.local/busybox:1
    command: [sh, -c, "echo hello from $1; httpd -p 8080 -h /; trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"]
    resources: $2
EOF
}

pods() { curl -fsSk -m 30 "https://127.0.0.1:10250/pods"; }
running() { # pod
  pods | jq -e --arg n "$1-machine" '.items[] | select(.metadata.name == $n) | .status | .phase == "Running" and .containerStatuses[0].ready' >/dev/null
}
container() { nodeagent pods -o json >/dev/null; pods | jq -r --arg n "$1-machine" '.items[] | select(.metadata.name == $n) | .status.containerStatuses[0].containerID' | sed 's|.*//||'; }
address() { pods | jq -r --arg n "$1-machine" '.items[] | select(.metadata.name == $n) | .status.podIP'; }
inside() { # pod command...: what it prints in the pod
  local p=$1 c
  shift
  c="$*"
  curl -fsSk -m 60 -X POST "https://127.0.0.1:10250/run/default/$p-machine/c?cmd=${c// /%20}"
}
cgroup() { find /sys/fs/cgroup/kubepods.slice -type d -name "*$(container "$1")*" | head -n 1; }

# Makes the kubelet a unit; which runtime it asks is left to drop-ins.
settle_kubelet() {
  mkdir -p $manifests /var/lib/kubelet
  install -m 755 /machine/bin/kubelet /usr/local/bin/kubelet
  cat >/var/lib/kubelet/config.yaml <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: $manifests
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
enableServer: true
failSwapOn: false
memorySwap: {swapBehavior: LimitedSwap}
featureGates: {PodAndContainerStatsFromCRI: true}
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
EOF
  cat >/etc/systemd/system/kubelet.service <<'EOF'
[Unit]
Description=kubelet
[Service]
ExecStart=/usr/local/bin/kubelet --config=/var/lib/kubelet/config.yaml --hostname-override=machine --v=2 $KUBELET_EXTRA_ARGS
Restart=always
[Install]
WantedBy=multi-user.target
EOF
}

test_kubelet() {
  spare
  settle_kubelet
  # As docs/install.md has it.
  install -D -m 644 -t /etc/kubernetes/kubelet.conf.d /usr/share/doc/nodeagent/kubelet/50-nodeagent.conf
  install -D -m 644 -t /etc/systemd/system/kubelet.service.d /usr/share/doc/nodeagent/kubelet/20-nodeagent.conf
  pod guaranteed '{limits: {cpu: 200m, memory: 64Mi}}' >$manifests/guaranteed.yaml
  pod burstable '{requests: {cpu: 100m, memory: 32Mi}, limits: {memory: 96Mi}}' >$manifests/burstable.yaml
  pod besteffort '{}' >$manifests/besteffort.yaml
  systemctl daemon-reload
  up kubelet
  for p in guaranteed burstable besteffort; do await 180 running $p; done
  journal kubelet | grep -q 'Using cgroup driver setting received from the CRI runtime.*systemd'
}

test_limits() {
  local g b e c
  g=$(cgroup guaranteed) b=$(cgroup burstable) e=$(cgroup besteffort)
  case $g in */kubepods.slice/kubepods-pod*.slice/cri-containerd-*.scope) ;; *) fail "guaranteed is in $g" ;; esac
  case $b in */kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod*.slice/cri-containerd-*.scope) ;; *) fail "burstable is in $b" ;; esac
  case $e in */kubepods.slice/kubepods-besteffort.slice/*) ;; *) fail "besteffort is in $e" ;; esac
  same "guaranteed cpu.max" "$(cat "$g/cpu.max")" "20000 100000"
  same "guaranteed memory.max" "$(cat "$g/memory.max")" $((64 << 20))
  same "guaranteed pod's memory.max" "$(cat "$(dirname "$g")/memory.max")" $((64 << 20))
  same "burstable memory.max" "$(cat "$b/memory.max")" $((96 << 20))
  same "besteffort memory.max" "$(cat "$e/memory.max")" max
  # The machine has swap, but LimitedSwap gives none to static pods, which are critical.
  for c in "$g" "$b" "$e"; do same "memory.swap.max of $c" "$(cat "$c/memory.swap.max")" 0; done
  grep -q . "$g/cgroup.procs" || fail "no process in $g"
  same "the scope, to systemd" "$(systemctl is-active "$(basename "$g")")" active
}

test_network() {
  local a
  a=$(address guaranteed)
  curl -fsS -m 5 "http://$a:8080/etc/hostname" | grep -q guaranteed
  ping -c 1 -W 5 "$a"
  nodeagent pods | grep -q guaranteed
  inside burstable ping -c 1 -W 5 "$a" | grep -q '0% packet loss'
  inside burstable ping -c 1 -W 5 10.0.2.15 | grep -q '0% packet loss'
}

# A service's address becomes a pod's when a socket connects: the hooks are on the root of cgroup v2, so that they
# are there for processes of the machine and of pods alike, also while nodeagent is away.
test_services() {
  local a
  a=$(address guaranteed)
  cat >/etc/nodeagent/manifests/web.yaml <<EOF
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80]
  ports: [{name: http, port: 80, targetPort: 8080, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [$a], conditions: {ready: true}}]
EOF
  await 60 curl -fsS -m 5 http://10.96.0.80/etc/hostname
  nodeagent services | grep -q default/web
  exec 3<>/dev/tcp/10.96.0.80/80
  ss -tnH | grep -q "ESTAB.* $a:8080" || fail "the machine's socket is not the pod's: $(ss -tn)"
  exec 3>&-
  pod client '{}' | sed 's/command:.*/command: [sh, -c, "tail -f \/dev\/null | nc 10.96.0.80 80"]/' >$manifests/client.yaml
  await 120 eval "inside client netstat -tn | grep -q ' $a:8080 *ESTABLISHED'"
  rm $manifests/client.yaml
  systemctl stop nodeagent
  curl -fsS -m 5 http://10.96.0.80/etc/hostname | grep -q guaranteed
  systemctl start nodeagent
  rm /etc/nodeagent/manifests/web.yaml
  await 60 eval '! nodeagent services | grep -q default/web'
}

test_exec_and_logs() {
  curl -fsSk -m 60 https://127.0.0.1:10250/containerLogs/default/guaranteed-machine/c | grep -q 'hello from guaranteed'
  # What is run in a container is where the container is, and confined as it is.
  same "an exec's cgroup" "$(inside guaranteed cat /proc/self/cgroup)" "0::/"
  same "the container's AppArmor profile" "$(cat "/proc/$(head -n 1 "$(cgroup guaranteed)/cgroup.procs")/attr/current")" "cri-containerd.apparmor.d (enforce)"
  same "an exec's AppArmor profile" "$(inside guaranteed cat /proc/self/attr/current)" "cri-containerd.apparmor.d (enforce)"
}

test_summary() {
  curl -fsSk -m 60 https://127.0.0.1:10250/stats/summary >/tmp/summary.json
  jq -e '.pods[] | select(.podRef.name == "guaranteed-machine") | .containers[0].memory.workingSetBytes > 0 and .network.name == "eth0"' /tmp/summary.json
  jq -e '.pods[] | select(.podRef.name == "guaranteed-machine") | .containers[0].cpu.psi.full.total >= 0' /tmp/summary.json
}

# Whatever becomes of the daemons: the same processes run on, and answer.
stays() { # what was done
  local p want
  await 120 nodeagent status
  for p in guaranteed burstable besteffort; do
    await 60 running $p
    want=$(cat /tmp/pid-$p)
    same "$p's process after $1" "$(head -n 1 "$(cgroup $p)/cgroup.procs")" "$want"
    curl -fsS -m 5 "http://$(address $p):8080/etc/hostname" | grep -q $p
  done
}

test_restarts() {
  local p pid
  for p in guaranteed burstable besteffort; do head -n 1 "$(cgroup $p)/cgroup.procs" >/tmp/pid-$p; done
  systemctl restart nodeagent
  stays "systemctl restart nodeagent"
  systemctl stop nodeagent
  for p in guaranteed burstable besteffort; do [ -d "/proc/$(cat /tmp/pid-$p)" ] || fail "$p ended with the unit"; done
  systemctl start nodeagent
  stays "systemctl stop and start"
  pid=$(property nodeagent MainPID)
  kill -9 "$pid"
  await 30 eval '[ "$(property nodeagent MainPID)" != 0 ] && [ "$(property nodeagent MainPID)" != '"$pid"' ]'
  await 60 systemctl is-active nodeagent
  stays "kill -9"
  systemctl restart containerd
  stays "systemctl restart containerd"
  systemctl restart kubelet
  stays "systemctl restart kubelet"
  systemctl daemon-reload
  systemctl daemon-reexec
  stays "systemctl daemon-reexec"
  systemctl restart systemd-networkd
  stays "systemctl restart systemd-networkd"
  dpkg -i /machine/nodeagent_*.deb
  stays "an upgrade of the package"
}

test_oom() {
  cat >$manifests/oom.yaml <<'EOF'
apiVersion: v1
kind: Pod
metadata: {name: oom}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: registry.local/busybox:1
    command: [sh, -c, "exec dd if=/dev/zero of=/dev/null bs=200M count=1"]
    resources: {limits: {memory: 24Mi, cpu: 500m}}
EOF
  await 120 eval "pods | jq -e '.items[] | select(.metadata.name == \"oom-machine\") | .status.containerStatuses[0].state.terminated.reason == \"OOMKilled\"'"
  rm $manifests/oom.yaml
}

test_end() {
  rm -f $manifests/*.yaml
  await 120 eval '[ "$(pods | jq ".items | length")" = 0 ]'
  await 60 eval '! systemctl list-units --plain --no-legend "cri-containerd-*" | grep -q .'
  await 60 eval '! find /sys/fs/cgroup/kubepods.slice -name "*-pod*.slice" | grep -q .'
  systemctl stop kubelet
  same "failed units" "$(systemctl list-units --failed --no-legend --plain)" ""
}
