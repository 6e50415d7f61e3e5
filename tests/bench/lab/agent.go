// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

const agentConfig = "/etc/nodeagent/config.yaml"

// Agent starts nodeagent in the box without its CRI, as beside another runtime,
// and waits until it is ready. What is in extra replaces sections of its
// configuration.
func (r *Run) Agent(ctx context.Context, b *Box, extra map[string]any) (*Proc, error) {
	p, err := r.AgentStarted(b, extra)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = Until(ctx, 20*time.Millisecond, func() error { return errors.Join(p.Down(), b.Ready(ctx)) })
	if err != nil {
		return nil, fmt.Errorf("nodeagent in %s: %w", b.Name, err)
	}
	return p, nil
}

// AgentStarted is Agent without the wait.
func (r *Run) AgentStarted(b *Box, extra map[string]any) (*Proc, error) {
	cfg := map[string]any{
		"apiVersion": "nodeagent.dev/v1alpha1", "kind": "NodeAgentConfiguration",
		"node":      map[string]any{"name": b.Name},
		"cri":       map[string]any{"enabled": false},
		"storage":   map[string]any{"enabled": false},
		"dataplane": map[string]any{"cgroup": b.Cgroup},
	}
	maps.Copy(cfg, extra)
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("render configuration: %w", err)
	}
	if err := b.Write(agentConfig, data); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Daemon(filepath.Join(r.Dir, b.Name, "nodeagent.log"), nil,
		filepath.Join(r.Bin, "nodeagent"), "run", "--config", agentConfig)
}

// Dial connects from the box's network.
func (b *Box) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = b.inside(unix.CLONE_NEWNET, "", func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Get fetches a page from the box's network.
func (b *Box) Get(ctx context.Context, url string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: b.Dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.300s", url, resp.Status, data)
	}
	return data, err
}

// Ready is nil when the agent in the box is.
func (b *Box) Ready(ctx context.Context) error {
	_, err := b.Get(ctx, "http://127.0.0.1:9470/readyz")
	return err
}
