// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"strings"

	"github.com/nodeagent/nodeagent/packaging"
	"github.com/nodeagent/nodeagent/packaging/archive"
)

// What both kinds of package say of themselves.
const (
	maintainer  = "nodeagent maintainers <maintainers@nodeagent.dev>"
	homepage    = "https://github.com/nodeagent/nodeagent"
	summary     = "runtime, network and volumes of a Kubernetes node"
	description = "One daemon that serves the CRI to the kubelet on top of containerd, is the node's\n" +
		"CNI plugin with an eBPF data path and services, and a CSI driver for local volumes."
)

// payload are the files of a package; its systemd units are in unitDir.
func (r release) payload(unitDir string) ([]archive.File, error) {
	files, err := r.programs(map[string]string{
		packaging.Daemon: binDir, packaging.Shim: libexecDir, packaging.Plugin: packaging.CNIBinDir,
	})
	if err != nil {
		return nil, err
	}
	unit, err := packaging.Unit(binDir)
	if err != nil {
		return nil, err
	}
	config, err := packaging.DefaultConfig()
	if err != nil {
		return nil, err
	}
	dropIns, err := packaging.KubeletDropIns()
	if err != nil {
		return nil, err
	}
	return append(files,
		archive.File{Path: unitDir + "/nodeagent.service", Data: unit},
		archive.File{Path: packaging.ConfigPath, Data: config},
		// Examples: whether this node's kubelet uses nodeagent is a person's choice.
		archive.File{Path: "/usr/share/doc/nodeagent/kubelet/20-nodeagent.conf", Data: dropIns[packaging.KubeletUnitDropIn]},
		archive.File{Path: "/usr/share/doc/nodeagent/kubelet/50-nodeagent.conf", Data: dropIns[packaging.KubeletConfigDropIn]},
		archive.File{Path: "/usr/share/doc/nodeagent/copyright", Data: []byte(copyright)},
	), nil
}

func (r release) deb() ([]byte, error) {
	files, err := r.payload("/lib/systemd/system")
	if err != nil {
		return nil, err
	}
	return archive.Deb{
		Name: "nodeagent", Version: strings.TrimPrefix(r.version, "v"), Architecture: r.arch,
		Maintainer: maintainer, Section: "admin", Homepage: homepage,
		Recommends: "containerd (>= 2.1) | containerd.io, runc, e2fsprogs, xfsprogs",
		Suggests:   "kubelet",
		Summary:    summary, Description: description,
		Conffiles: []string{packaging.ConfigPath},
		Scripts:   map[string]string{"postinst": debPostinst, "prerm": debPrerm, "postrm": debPostrm},
		Files:     files, Time: r.time,
	}.Write()
}

// rpmVersion is a version as RPM takes it: what follows a hyphen is before the
// release of that number.
func rpmVersion(version string) (number, release string) {
	number, rest, pre := strings.Cut(strings.TrimPrefix(version, "v"), "-")
	if !pre {
		return number, "1"
	}
	return number, "0." + strings.ReplaceAll(rest, "-", ".")
}

// rpmArch is RPM's name of an architecture.
func rpmArch(arch string) string {
	return cmp.Or(map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch], arch)
}

func (r release) rpm() ([]byte, error) {
	files, err := r.payload("/usr/lib/systemd/system")
	if err != nil {
		return nil, err
	}
	number, rel := rpmVersion(r.version)
	return archive.RPM{
		Name: "nodeagent", Version: number, Release: rel, Architecture: rpmArch(r.arch),
		Packager: maintainer, URL: homepage, Licence: "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
		Summary: summary, Description: description,
		Recommends:  []string{"containerd >= 2.1", "runc", "e2fsprogs", "xfsprogs"},
		Suggests:    []string{"kubelet"},
		PostInstall: rpmPostin, PreRemove: rpmPreun, PostRemove: reload,
		Configs: []string{packaging.ConfigPath},
		Files:   files, Time: r.time,
	}.Write()
}

const copyright = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Files: *
License: Apache-2.0
Comment: BPF programs are GPL-2.0-only OR BSD-2-Clause.
`

const (
	// deb-systemd-helper remembers what a person had enabled or disabled over removals, and works where no systemd runs: in an
	// image that is being made.
	debPostinst = `#!/bin/sh
set -e
if [ "$1" = configure ]; then
	deb-systemd-helper unmask nodeagent.service >/dev/null || true
	if deb-systemd-helper --quiet was-enabled nodeagent.service; then
		deb-systemd-helper enable nodeagent.service >/dev/null || true
	else
		deb-systemd-helper update-state nodeagent.service >/dev/null || true
	fi
	if [ -z "$2" ]; then
		echo "nodeagent: edit /etc/nodeagent/config.yaml, then systemctl start nodeagent"
	fi
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
		# Pods, connections and volumes stay over a restart.
		[ -z "$2" ] || systemctl try-restart nodeagent.service
	fi
fi
`
	debPrerm = `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl stop nodeagent.service
fi
`
	debPostrm = `#!/bin/sh
set -e
if [ "$1" = remove ]; then
	deb-systemd-helper mask nodeagent.service >/dev/null || true
fi
if [ "$1" = purge ]; then
	deb-systemd-helper purge nodeagent.service >/dev/null || true
	deb-systemd-helper unmask nodeagent.service >/dev/null || true
fi
` + reload

	reload = `if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
`
	// RPM says how many of the package there will be: 1 at the first installation, 0 after removal.
	rpmPostin = `if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if [ "$1" = 1 ]; then
		systemctl enable nodeagent.service
		echo "nodeagent: edit /etc/nodeagent/config.yaml, then systemctl start nodeagent"
	else
		# Pods, connections and volumes stay over a restart.
		systemctl try-restart nodeagent.service
	fi
fi
`
	rpmPreun = `if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then
	systemctl disable --now nodeagent.service
fi
`
)
