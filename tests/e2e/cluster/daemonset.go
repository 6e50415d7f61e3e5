// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// hasAgent says whether nodeagent is on the nodes, as a service or as a DaemonSet.
func (c *Config) hasAgent() bool { return c.Runtime == RuntimeNodeagent || c.Dist != "" }

// applyDaemonSet deploys the package in Config.Dist as a person would: the image to
// a registry, the manifest to the API server.
func (c *Cluster) applyDaemonSet(ctx context.Context) error {
	manifest, err := os.ReadFile(filepath.Join(c.Dist, "nodeagent-pod.yaml"))
	if err != nil {
		return err
	}
	found := regexp.MustCompile(`image: "([^"]+)"`).FindSubmatch(manifest)
	if found == nil {
		return errors.New("nodeagent-pod.yaml names no image")
	}
	if err := c.pushArchive(ctx, string(found[1])); err != nil {
		return err
	}
	// What a person sets in the chart's values: where the API server is, as nothing
	// translates its ClusterIP yet, and that this node is not alone on its machine.
	const after = "- --ca=/var/run/secrets/nodeagent/ca.crt\n"
	args := []string{"--server=" + strings.TrimPrefix(controlURL, "https://"), "--set=dataplane.cgroup=" + c.Nodes[0].UnifiedCgroup()}
	var more strings.Builder
	for _, a := range args {
		fmt.Fprintf(&more, "            - %s\n", a)
	}
	text := strings.Replace(string(manifest), after, after+more.String(), 1)
	return c.Apply(ctx, text)
}

// pushArchive pushes the OCI image archive of Config.Dist under ref.
func (c *Cluster) pushArchive(ctx context.Context, ref string) error {
	archives, err := filepath.Glob(filepath.Join(c.Dist, "*.oci.tar"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("want one OCI archive in %s, found %v", c.Dist, archives)
	}
	dir := filepath.Join(c.dir, "image")
	if err := untar(archives[0], dir); err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", archives[0], err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("read %s: %w", archives[0], err)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return fmt.Errorf("read %s: %w", archives[0], err)
	}
	return c.push(ctx, img, ref)
}

// untar unpacks the regular files of an archive.
func untar(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", archive, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("read %s: %w", archive, err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
}
