// SPDX-License-Identifier: Apache-2.0

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Fault is one thing wrong with a configuration file.
type Fault struct {
	// Line is 1-based; 0 means that the field is not in the file.
	Line int
	// Text says what is wrong, beginning with the field's path where known.
	Text string
}

// FaultsError lists everything wrong with a configuration file.
type FaultsError struct {
	File   string
	Faults []Fault
}

// Error prints one fault a line, in file:line: form.
func (e *FaultsError) Error() string {
	lines := make([]string, 0, len(e.Faults))
	for _, f := range e.Faults {
		if f.Line > 0 {
			lines = append(lines, fmt.Sprintf("%s:%d: %s", e.File, f.Line, f.Text))
		} else {
			lines = append(lines, fmt.Sprintf("%s: %s", e.File, f.Text))
		}
	}
	return strings.Join(lines, "\n")
}

// Load reads and checks the file at path. The error is a *FaultsError when the
// file could be read.
func Load(path string) (*Configuration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse checks data strictly: unknown fields, duplicate keys, wrong types and
// values out of range are all reported, each with its line.
func Parse(name string, data []byte) (*Configuration, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, &FaultsError{File: name, Faults: []Fault{yamlFault(err.Error())}}
	}
	if err := checkHeader(name, &root); err != nil {
		return nil, err
	}
	c := Default()
	var faults []Fault
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil {
		faults = append(faults, typeFaults(err)...)
	} else if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		faults = append(faults, Fault{Text: "more than one document in the file"})
	}
	for _, err := range leaves(c.complete()) {
		faults = append(faults, located(&root, err))
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
		return nil, &FaultsError{File: name, Faults: faults}
	}
	return c, nil
}

func checkHeader(name string, root *yaml.Node) error {
	var faults []Fault
	for field, want := range map[string]string{"apiVersion": APIVersion, "kind": Kind} {
		node := lookup(root, []string{field})
		switch {
		case node == nil:
			faults = append(faults, Fault{Text: fmt.Sprintf("%s: missing, want %q", field, want)})
		case node.Value != want:
			faults = append(faults, Fault{
				Line: node.Line,
				Text: fmt.Sprintf("%s: %q is not supported, this version reads %q", field, node.Value, want),
			})
		}
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortFunc(faults, func(a, b Fault) int { return strings.Compare(a.Text, b.Text) })
	return &FaultsError{File: name, Faults: faults}
}

func typeFaults(err error) []Fault {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return []Fault{yamlFault(err.Error())}
	}
	out := make([]Fault, 0, len(te.Errors))
	for _, s := range te.Errors {
		out = append(out, yamlFault(s))
	}
	return out
}

// yamlFault turns one message of the YAML library, "line N: text", into a fault.
func yamlFault(text string) Fault {
	text = strings.TrimPrefix(text, "yaml: ")
	line, rest := 0, text
	if after, ok := strings.CutPrefix(text, "line "); ok {
		if num, tail, ok := strings.Cut(after, ": "); ok {
			if n, err := strconv.Atoi(num); err == nil {
				line, rest = n, tail
			}
		}
	}
	if after, ok := strings.CutPrefix(rest, "field "); ok {
		if field, _, ok := strings.Cut(after, " not found in type "); ok {
			rest = fmt.Sprintf("unknown field %q", field)
		}
	}
	return Fault{Line: line, Text: rest}
}

// leaves flattens joined errors.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	var out []error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			out = append(out, leaves(e)...)
		}
		return out
	}
	return []error{err}
}

// located finds the line of the field that err's text begins with; the nearest
// ancestor in the file stands in for a field that is not there.
func located(root *yaml.Node, err error) Fault {
	path, _, ok := strings.Cut(err.Error(), ": ")
	if !ok {
		return Fault{Text: err.Error()}
	}
	steps := strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	for n := len(steps); n > 0; n-- {
		if node := lookup(root, steps[:n]); node != nil {
			return Fault{Line: node.Line, Text: err.Error()}
		}
	}
	return Fault{Text: err.Error()}
}

func lookup(n *yaml.Node, steps []string) *yaml.Node {
	if n.Kind == yaml.DocumentNode {
		if len(n.Content) == 0 {
			return nil
		}
		n = n.Content[0]
	}
	for _, s := range steps {
		if n = child(n, s); n == nil {
			return nil
		}
	}
	return n
}

func child(n *yaml.Node, step string) *yaml.Node {
	switch n.Kind {
	default: // a scalar has no children
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}
