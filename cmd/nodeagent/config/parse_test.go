// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
)

const header = "apiVersion: nodeagent.dev/v1alpha1\nkind: NodeAgentConfiguration\n"

func TestParseReportsAllFaultsWithLines(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
	}{
		{"empty", "", []string{`c.yaml: apiVersion: missing`, `c.yaml: kind: missing`}},
		{
			"newer version", "apiVersion: nodeagent.dev/v2\nkind: NodeAgentConfiguration\n",
			[]string{`c.yaml:1: apiVersion: "nodeagent.dev/v2" is not supported`},
		},
		{
			"unknown and wrong", header + "log:\n  level: loud\n  colour: red\nnode:\n  runDir: run\n  metrics: 9470\n",
			[]string{
				`c.yaml:4: log.level: "loud" is not one of`, `c.yaml:5: unknown field "colour"`,
				`c.yaml:7: node.runDir: "run" is not an absolute path`, `c.yaml:8: node.metrics: `,
			},
		},
		{"wrong type", header + "containerd:\n  managed: maybe\n", []string{"c.yaml:4: cannot unmarshal"}},
		{"duplicate key", header + "log: {level: info}\nlog: {level: info}\n", []string{`c.yaml:4: mapping key "log" already defined`}},
		{"two documents", header + "---\n" + header, []string{"c.yaml: more than one document"}},
		{"not yaml", "a: [", []string{"c.yaml:1: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse("c.yaml", []byte(tt.in))
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d faults, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("fault %d is %q, want prefix %q", i, lines[i], want)
				}
			}
		})
	}
}

func TestParseDefaults(t *testing.T) {
	c, err := config.Parse("c.yaml", []byte(header))
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name == "" || c.Node.RunDir != "/run/nodeagent" || c.Log.Level != "info" {
		t.Errorf("defaults not applied: %+v", c)
	}
}
