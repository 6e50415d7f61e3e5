#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Starts a node with nodeagent and one with containerd's own CRI plugin beside each
# other and measures them in turn: run.sh [flags of tests/bench].
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
dir=$(mktemp -d)
bin/cluster runtimes --name bench >"$dir/peers" &
pid=$!
trap 'kill -TERM $pid 2>/dev/null; wait $pid || true; rm -rf "$dir"' EXIT
until [ "$(grep -c -- '^--peer' "$dir/peers")" = 2 ]; do
  kill -0 $pid || { echo "bench: the runtimes did not come up" >&2; exit 1; }
  sleep 0.2
done
mapfile -t peers < <(tr ' ' '\n' <"$dir/peers")
bin/bench "${peers[@]}" --image registry.k8s.io/e2e-test-images/busybox:1.37.0-1 "$@"
