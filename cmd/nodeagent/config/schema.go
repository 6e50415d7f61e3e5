// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// Configuration is the whole file. Each section belongs to one room, which
// documents its fields, knows its defaults and validates it.
type Configuration struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Node       Node              `yaml:"node"`
	Log        Log               `yaml:"log"`
	Containerd containerd.Config `yaml:"containerd"`
}

// Default returns the configuration of an ordinary node.
func Default() *Configuration {
	return &Configuration{
		APIVersion: APIVersion,
		Kind:       Kind,
		Node:       defaultNode(),
		Log:        Log{Level: "info", Format: "text"},
		Containerd: containerd.Default(),
	}
}

// complete fills in what depends on the machine and validates every section;
// each fault begins with the field's path from the top.
func (c *Configuration) complete() error {
	var errs []error
	if c.Node.Name == "" {
		name, err := hostName()
		if err != nil {
			errs = append(errs, err)
		}
		c.Node.Name = name
	}
	sections := []struct {
		name string
		err  error
	}{
		{"node", c.Node.validate()},
		{"log", c.Log.validate()},
		{"containerd", c.Containerd.Validate()},
	}
	for _, s := range sections {
		for _, err := range leaves(s.err) {
			errs = append(errs, fmt.Errorf("%s.%s", s.name, strings.TrimPrefix(err.Error(), s.name+".")))
		}
	}
	return errors.Join(errs...)
}
