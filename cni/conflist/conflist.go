// SPDX-License-Identifier: Apache-2.0

// Package conflist writes the network configuration by which CNI runtimes find
// nodeagent. The file appears whole or not at all, only once the daemon can
// serve, and a stop or restart of the daemon leaves it: a runtime that finds no
// configuration calls the node not ready.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nodeagent/nodeagent/cni/shim"
)

// Plugin is the type of our plugin: the name of its program.
const Plugin = "nodeagent-cni"

// Config says whether and where the file is written.
type Config struct {
	// Enabled writes the file; only other runtimes than our CRI need it.
	Enabled bool `yaml:"enabled"`
	// Path of the file; the first by name in its directory is the one used.
	Path string `yaml:"path"`
	// Chained are plugins that runtimes call after ours, as in a conflist.
	Chained []map[string]any `yaml:"chained"`
}

// Default returns the configuration of an ordinary node.
func Default() Config {
	return Config{Path: "/etc/cni/net.d/05-nodeagent.conflist"}
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Path) || filepath.Ext(c.Path) != ".conflist" {
		errs = append(errs, fmt.Errorf("path: %q is not an absolute path of a .conflist file", c.Path))
	}
	for i, p := range c.Chained {
		if t, ok := p["type"].(string); !ok || t == "" || t == Plugin {
			errs = append(errs, fmt.Errorf("chained[%d].type: must name another plugin than %s", i, Plugin))
		}
	}
	return errors.Join(errs...)
}

// list is a network configuration list.
type list struct {
	CNIVersion string `json:"cniVersion"`
	// CNIVersions lets a runtime that is older than CNIVersion choose.
	CNIVersions []string         `json:"cniVersions"`
	Name        string           `json:"name"`
	Plugins     []map[string]any `json:"plugins"`
}

// Name of the network.
const Name = "nodeagent"

// Render returns the file: socket is the daemon's, queue that of its deletes.
func Render(c Config, socket, queue string) ([]byte, error) {
	own := map[string]any{
		"type": Plugin, "socket": socket, "queue": queue,
		"capabilities": map[string]bool{
			"portMappings": true, "bandwidth": true, "ips": true, "ipRanges": true, "mac": true, "dns": true,
			"io.kubernetes.cri.pod-annotations": true,
		},
	}
	versions := shim.Versions()
	l := list{
		CNIVersion: versions[len(versions)-1], CNIVersions: versions, Name: Name,
		Plugins: append([]map[string]any{own}, c.Chained...),
	}
	body, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("render conflist: %w", err)
	}
	return append(body, '\n'), nil
}

// Write makes the file what Render returns and says if that changed anything.
func Write(c Config, socket, queue string) (changed bool, err error) {
	body, err := Render(c, socket, queue)
	if err != nil {
		return false, err
	}
	if old, err := os.ReadFile(c.Path); err == nil && bytes.Equal(old, body) {
		return false, nil
	}
	if err := replace(c.Path, body); err != nil {
		return false, fmt.Errorf("write conflist: %w", err)
	}
	return true, nil
}

// replace writes a file beside path, on which runtimes look only for certain
// suffixes, and renames it.
func replace(path string, body []byte) (retErr error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".nodeagent-*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(body)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Remove deletes the file, for an uninstall; nothing to delete is success.
func Remove(c Config) error {
	if err := os.Remove(c.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove conflist: %w", err)
	}
	return nil
}
