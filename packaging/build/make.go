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

// Where the packages put programs.
const (
	binDir     = "/usr/bin"
	libexecDir = "/usr/libexec/nodeagent"
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

func (r release) oci() ([]byte, error) {
	files, err := r.programs(map[string]string{
		packaging.Daemon: binDir, packaging.Shim: binDir, packaging.Plugin: binDir,
	})
	if err != nil {
		return nil, err
	}
	// A directory that programs expect; an image has none by itself.
	files = append(files, archive.File{Path: "/tmp/.keep", Data: []byte{}})
	return archive.Image{
		Ref: r.image + ":" + r.version, Architecture: r.arch, Files: files, Time: r.time,
		Entrypoint: []string{filepath.Join(binDir, packaging.Daemon)},
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
