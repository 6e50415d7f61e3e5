// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/packaging"
	"github.com/nodeagent/nodeagent/packaging/archive"
	"github.com/nodeagent/nodeagent/packaging/render"
)

// Where the Debian package puts programs.
const (
	debBinDir     = "/usr/bin"
	debLibexecDir = "/usr/libexec/nodeagent"
)

// programs are the built programs, in the directories named.
func (r release) programs(dirs map[string]string) ([]archive.File, error) {
	var out []archive.File
	for name, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(r.bin, name))
		if err != nil {
			return nil, fmt.Errorf("read program (make build makes it): %w", err)
		}
		out = append(out, archive.File{Path: filepath.Join(dir, name), Mode: 0o755, Data: data})
	}
	return out, nil
}

func (r release) deb() ([]byte, error) {
	files, err := r.programs(map[string]string{
		packaging.Daemon: debBinDir, packaging.Shim: debLibexecDir, packaging.Plugin: packaging.CNIBinDir,
	})
	if err != nil {
		return nil, err
	}
	unit, err := packaging.Unit(debBinDir)
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
	files = append(files,
		archive.File{Path: "/lib/systemd/system/nodeagent.service", Data: unit},
		archive.File{Path: packaging.ConfigPath, Data: config},
		// Examples: whether this node's kubelet uses nodeagent is a person's choice.
		archive.File{Path: "/usr/share/doc/nodeagent/kubelet/20-nodeagent.conf", Data: dropIns[packaging.KubeletUnitDropIn]},
		archive.File{Path: "/usr/share/doc/nodeagent/kubelet/50-nodeagent.conf", Data: dropIns[packaging.KubeletConfigDropIn]},
		archive.File{Path: "/usr/share/doc/nodeagent/copyright", Data: []byte(copyright)},
	)
	return archive.Deb{
		Name: "nodeagent", Version: strings.TrimPrefix(r.version, "v"), Architecture: r.arch,
		Maintainer: "nodeagent maintainers <maintainers@nodeagent.dev>", Section: "admin",
		Homepage:   "https://github.com/nodeagent/nodeagent",
		Recommends: "containerd (>= 2.1) | containerd.io, runc, e2fsprogs, xfsprogs",
		Suggests:   "kubelet",
		Summary:    "runtime, network and volumes of a Kubernetes node",
		Description: "One daemon that serves the CRI to the kubelet on top of containerd, is the node's\n" +
			"CNI plugin with an eBPF data path and services, and a CSI driver for local volumes.",
		Conffiles: []string{packaging.ConfigPath},
		Scripts:   map[string]string{"postinst": postinst, "prerm": prerm, "postrm": postrm},
		Files:     files, Time: r.time,
	}.Write()
}

const copyright = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Files: *
License: Apache-2.0
Comment: BPF programs are GPL-2.0-only OR BSD-2-Clause.
`

const postinst = `#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if [ -z "$2" ]; then
		systemctl enable nodeagent.service
		echo "nodeagent: edit /etc/nodeagent/config.yaml, then systemctl start nodeagent"
	else
		# Pods, connections and volumes stay over a restart.
		systemctl try-restart nodeagent.service
	fi
fi
`

const prerm = `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now nodeagent.service
fi
`

const postrm = `#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
`

func (r release) oci() ([]byte, error) {
	files, err := r.programs(map[string]string{
		packaging.Daemon: debBinDir, packaging.Shim: debBinDir, packaging.Plugin: debBinDir,
	})
	if err != nil {
		return nil, err
	}
	// A directory that programs expect; an image has none by itself.
	files = append(files, archive.File{Path: "/tmp/.keep", Data: []byte{}})
	return archive.Image{
		Ref: r.image + ":" + r.version, Architecture: r.arch, Files: files, Time: r.time,
		Entrypoint: []string{filepath.Join(debBinDir, packaging.Daemon)},
		Env:        []string{"PATH=/usr/bin"},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "nodeagent",
			"org.opencontainers.image.version":  r.version,
			"org.opencontainers.image.source":   "https://github.com/nodeagent/nodeagent",
			"org.opencontainers.image.licenses": "Apache-2.0",
		},
	}.Write()
}

// chart is the Helm chart with the release's versions.
func (r release) chart() ([]byte, error) {
	chart, err := packaging.Chart()
	if err != nil {
		return nil, err
	}
	var files []archive.File
	err = fs.WalkDir(chart, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := fs.ReadFile(chart, path)
		if err != nil {
			return err
		}
		if path == "Chart.yaml" {
			data = r.chartYAML(data)
		}
		files = append(files, archive.File{Path: "/nodeagent/" + path, Data: data})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return archive.Tgz(files, r.time)
}

func (r release) chartYAML(data []byte) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(string(data)) {
		switch {
		case strings.HasPrefix(line, "version:"):
			line = "version: " + strings.TrimPrefix(r.version, "v") + "\n"
		case strings.HasPrefix(line, "appVersion:"):
			line = "appVersion: " + r.version + "\n"
		}
		out.WriteString(line)
	}
	return out.Bytes()
}

// manifests is the chart rendered for those who do not use Helm.
func (r release) manifests(mode string) ([]byte, error) {
	chart, err := packaging.Chart()
	if err != nil {
		return nil, err
	}
	return render.Manifests(chart,
		render.Release{Name: "nodeagent", Namespace: "kube-system", AppVersion: r.version},
		map[string]any{"mode": mode, "image": map[string]any{"repository": r.image}})
}

// storage is the part of the manifests about volumes.
func (r release) storage() ([]byte, error) {
	all, err := r.manifests("host")
	if err != nil {
		return nil, err
	}
	const source = "---\n# Source: "
	for part := range bytes.SplitSeq(all, []byte(source)) {
		if bytes.HasPrefix(part, []byte("nodeagent/templates/storage.yaml\n")) {
			return append([]byte(source), part...), nil
		}
	}
	return nil, errors.New("the chart has no templates/storage.yaml")
}
