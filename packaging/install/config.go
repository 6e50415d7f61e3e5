// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/nodeagent/nodeagent/packaging"
)

// Where the identity for the API server is on a node.
const (
	tokenPath = "/var/lib/nodeagent/identity/token"
	caPath    = "/var/lib/nodeagent/identity/ca.crt"
)

// configFiles are the daemon's configuration: what was given, with what the
// mode and the node need; or the default, where there is none yet.
func (i *Installer) configFiles() ([]file, error) {
	if i.opts.Config == "" && len(i.opts.Set) == 0 && i.opts.Mode == ModeHost {
		data, err := packaging.DefaultConfig()
		return []file{{path: packaging.ConfigPath, mode: 0o644, data: data, once: true}}, err
	}
	cfg, err := i.givenConfig()
	if err != nil {
		return nil, err
	}
	if i.opts.Node != "" {
		preset(cfg, "node.name", i.opts.Node)
	}
	if i.opts.Token != "" {
		preset(cfg, "kubernetes.kubeconfig", packaging.KubeconfigPath)
		if len(i.opts.Servers) > 0 {
			preset(cfg, "kubernetes.servers", i.opts.Servers)
		}
	}
	if i.opts.Mode == ModePod {
		preset(cfg, "cri.enabled", false)
		preset(cfg, "network.conflist.enabled", true)
	}
	for _, s := range i.opts.Set {
		path, text, _ := strings.Cut(s, "=")
		var value any
		if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			return nil, fmt.Errorf("set %s: %w", path, err)
		}
		preset(cfg, path, value)
	}
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	data = append([]byte("# Written by nodeagent install.\n"), data...)
	if i.deps.CheckConfig != nil {
		if err := i.deps.CheckConfig(data); err != nil {
			return nil, fmt.Errorf("configuration is not written: %w", err)
		}
	}
	return []file{{path: packaging.ConfigPath, mode: 0o644, data: data}}, nil
}

// givenConfig is the configuration that was given, or an empty one.
func (i *Installer) givenConfig() (map[string]any, error) {
	cfg := map[string]any{"apiVersion": "nodeagent.dev/v1alpha1", "kind": "NodeAgentConfiguration"}
	if i.opts.Config == "" {
		return cfg, nil
	}
	data, err := os.ReadFile(i.opts.Config)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if err := yaml.Unmarshal(data, &cfg); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", i.opts.Config, err)
	}
	return cfg, nil
}

// preset gives a field a value that it does not have yet.
func preset(cfg map[string]any, path string, value any) {
	steps := strings.Split(path, ".")
	for _, s := range steps[:len(steps)-1] {
		next, ok := cfg[s].(map[string]any)
		if !ok {
			if cfg[s] != nil {
				return // strict parsing will say what is wrong with it
			}
			next = map[string]any{}
			cfg[s] = next
		}
		cfg = next
	}
	last := steps[len(steps)-1]
	if _, ok := cfg[last]; !ok {
		cfg[last] = value
	}
}

// identityFiles are the credentials for the API server.
func (i *Installer) identityFiles() ([]file, error) {
	if i.opts.Token == "" {
		return nil, nil
	}
	server, err := i.server()
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(i.opts.Token)
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	ca, err := os.ReadFile(i.opts.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	kubeconfig, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "nodeagent",
		"clusters": []any{map[string]any{"name": "cluster", "cluster": map[string]any{
			"server": server, "certificate-authority": caPath,
		}}},
		"users":    []any{map[string]any{"name": "nodeagent", "user": map[string]any{"tokenFile": tokenPath}}},
		"contexts": []any{map[string]any{"name": "nodeagent", "context": map[string]any{"cluster": "cluster", "user": "nodeagent"}}},
	})
	if err != nil {
		return nil, fmt.Errorf("render kubeconfig: %w", err)
	}
	return []file{
		{path: caPath, mode: 0o600, data: ca},
		{path: tokenPath, mode: 0o600, data: token},
		{path: packaging.KubeconfigPath, mode: 0o600, data: kubeconfig},
	}, nil
}

// server is the URL of the API server. The kubelet's is one that works without
// any service; the ClusterIP is what is left.
func (i *Installer) server() (string, error) {
	if len(i.opts.Servers) > 0 {
		return "https://kubernetes.default.svc", nil // dialled at Servers, named as its certificate is
	}
	for _, path := range []string{"/etc/kubernetes/kubelet.conf", "/var/lib/kubelet/kubeconfig"} {
		data, err := i.tree.read(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the kubelet's kubeconfig: %w", err)
		}
		var kc struct {
			Clusters []struct {
				Cluster struct {
					Server string `yaml:"server"`
				} `yaml:"cluster"`
			} `yaml:"clusters"`
		}
		if err := yaml.Unmarshal(data, &kc); err != nil {
			return "", fmt.Errorf("read the kubelet's kubeconfig %s: %w", path, err)
		}
		if len(kc.Clusters) > 0 && kc.Clusters[0].Cluster.Server != "" {
			return kc.Clusters[0].Cluster.Server, nil
		}
	}
	host, port := i.deps.Env("KUBERNETES_SERVICE_HOST"), i.deps.Env("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return "", errors.New("where is the API server? neither --server nor a kubeconfig of the kubelet nor KUBERNETES_SERVICE_HOST says so")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "https://" + host + ":" + port, nil
}
