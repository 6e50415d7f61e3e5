#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Stands in for sudo, systemd-run and systemctl on a node without systemd: Kubernetes' node
# tests start, stop and restart their kubelet with them. A unit is its arguments, one a line, its log
# and its process id in /run/units.
set -u
units=/run/units
mkdir -p "$units"

alive() { # unit
	pid=$(cat "$units/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null
}

start() { # unit
	alive "$1" && return
	setsid -f sh -c '
		echo $$ >"$1.pid.new" && mv "$1.pid.new" "$1.pid"
		log=$(cat "$1.log")
		while IFS= read -r arg; do set -- "$@" "$arg"; done <"$1.argv"
		shift
		exec "$@" </dev/null >>"$log" 2>&1' sh "$units/$1"
	until alive "$1"; do sleep 0.05; done
}

stop() { # unit
	alive "$1" || return 0
	kill "$pid"
	while alive "$1"; do sleep 0.05; done
}

run() {
	log=/dev/null
	while :; do
		case $1 in
		--version) echo "systemd 252 (252)"; exit ;;
		-p) case $2 in StandardError=*) log=${2#*:} ;; esac; shift 2 ;;
		--unit=*) unit=${1#--unit=}; shift ;;
		-*) shift ;;
		*) break ;;
		esac
	done
	unit=${unit%.service}
	printf '%s\n' "$log" >"$units/$unit.log"
	printf '%s\n' "$@" >"$units/$unit.argv"
	start "$unit"
}

list() { # pattern [--state=running]
	for f in "$units"/*.argv; do
		u=$(basename "$f" .argv)
		state=exited
		alive "$u" && state=running
		[ "${2-}" = --state=running ] && [ $state != running ] && continue
		case $u in $1) echo "$u.service loaded active $state" ;; esac
	done
}

case ${0##*/} in
sudo)
	while case $1 in -*) true ;; *) false ;; esac do shift; done
	exec "$@"
	;;
systemd-run) run "$@" ;;
systemctl)
	verb=$1 unit=${2-}
	shift
	case $verb in
	list-units) list "$@" ;;
	reset-failed) ;;
	start) start "${unit%.service}" ;;
	kill) alive "${unit%.service}" && kill "$pid" ;;
	stop) stop "${unit%.service}" ;;
	restart) stop "${unit%.service}" && start "${unit%.service}" ;;
	*) echo "there is no systemd here: $verb $*" >&2; exit 1 ;;
	esac
	;;
esac
