// SPDX-License-Identifier: Apache-2.0

// Package render renders the Helm chart without Helm, for those who apply plain
// manifests. It knows the functions that the chart uses and gives what Helm
// gives; an unknown function or value is a fault.
package render

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// Release is what Helm knows of an installation.
type Release struct {
	Name, Namespace string
	// AppVersion replaces the chart's; empty keeps it.
	AppVersion string
}

// Manifests renders the chart with values over its defaults: one stream of YAML
// documents.
func Manifests(chart fs.FS, release Release, values map[string]any) ([]byte, error) {
	var meta struct {
		Name       string `json:"name"`
		Version    string `json:"version"`
		AppVersion string `json:"appVersion"`
	}
	if err := readYAML(chart, "Chart.yaml", &meta); err != nil {
		return nil, err
	}
	defaults := map[string]any{}
	if err := readYAML(chart, "values.yaml", &defaults); err != nil {
		return nil, err
	}
	merged, err := merge(defaults, values, "")
	if err != nil {
		return nil, err
	}
	if release.AppVersion != "" {
		meta.AppVersion = release.AppVersion
	}
	t, names, err := parse(chart)
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"Values":  merged,
		"Release": map[string]any{"Name": release.Name, "Namespace": release.Namespace, "Service": "Helm"},
		"Chart":   map[string]any{"Name": meta.Name, "Version": meta.Version, "AppVersion": meta.AppVersion},
	}
	var out bytes.Buffer
	for _, name := range names {
		var doc bytes.Buffer
		if err := t.ExecuteTemplate(&doc, name, data); err != nil {
			return nil, fmt.Errorf("render %s: %w", name, err)
		}
		if text := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(doc.String()), "---")); text != "" {
			if strings.Contains(text, "<no value>") {
				return nil, fmt.Errorf("render %s: it needs a value that is not there", name)
			}
			fmt.Fprintf(&out, "---\n# Source: %s/templates/%s\n%s\n", meta.Name, name, text)
		}
	}
	return out.Bytes(), nil
}

// parse reads the templates; names are those that make manifests.
func parse(chart fs.FS) (*template.Template, []string, error) {
	t := template.New("chart")
	t.Funcs(template.FuncMap{
		"quote":     func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"default":   orDefault,
		"list":      func(v ...any) []any { return v },
		"toYaml":    toYAML,
		"indent":    indent,
		"nindent":   func(n int, s string) string { return "\n" + indent(n, s) },
		"sha256sum": func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) },
		"include": func(name string, data any) (string, error) {
			var b bytes.Buffer
			err := t.ExecuteTemplate(&b, name, data)
			return b.String(), err
		},
	})
	entries, err := fs.ReadDir(chart, "templates")
	if err != nil {
		return nil, nil, fmt.Errorf("read templates: %w", err)
	}
	var names []string
	for _, e := range entries {
		data, err := fs.ReadFile(chart, path.Join("templates", e.Name()))
		if err != nil {
			return nil, nil, err
		}
		if _, err := t.New(e.Name()).Parse(string(data)); err != nil {
			return nil, nil, fmt.Errorf("parse template: %w", err)
		}
		if strings.HasSuffix(e.Name(), ".yaml") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return t, names, nil
}

func readYAML(chart fs.FS, name string, into any) error {
	data, err := fs.ReadFile(chart, name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := yaml.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// merge lays values over defaults. What the chart does not know is a fault,
// but for what is free: an empty map or list among the defaults.
func merge(defaults, values map[string]any, at string) (map[string]any, error) {
	out := maps.Clone(defaults)
	for k, v := range values {
		d, known := defaults[k]
		if !known && len(defaults) > 0 {
			return nil, fmt.Errorf("values: %s%s: the chart has no such value", at, k)
		}
		dm, isMap := d.(map[string]any)
		vm, ok := v.(map[string]any)
		if !isMap || !ok || k == "config" || k == "nodeSelector" {
			out[k] = v
			continue
		}
		sub, err := merge(dm, vm, at+k+".")
		if err != nil {
			return nil, err
		}
		out[k] = sub
	}
	return out, nil
}

func orDefault(otherwise, v any) any {
	if v == nil || reflect.ValueOf(v).IsZero() {
		return otherwise
	}
	return v
}

func toYAML(v any) (string, error) {
	data, err := yaml.Marshal(v)
	return strings.TrimSuffix(string(data), "\n"), err
}

func indent(n int, s string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}
