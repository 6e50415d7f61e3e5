// SPDX-License-Identifier: Apache-2.0

package hooks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// version of the format that is understood.
const version = "1.0.0"

// file is a hook as it is written.
type file struct {
	Version string     `json:"version"`
	Hook    specs.Hook `json:"hook"`
	When    struct {
		Always        *bool             `json:"always"`
		Annotations   map[string]string `json:"annotations"`
		Commands      []string          `json:"commands"`
		HasBindMounts *bool             `json:"hasBindMounts"`
	} `json:"when"`
	Stages []string `json:"stages"`
}

// hook is a file with its patterns compiled.
type hook struct {
	file
	annotations []pattern
	commands    []*regexp.Regexp
}

// pattern is of an annotation.
type pattern struct{ key, value *regexp.Regexp }

// parse reads a file strictly and reports all faults at once.
func parse(data []byte) (*hook, error) {
	h := &hook{}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&h.file); err != nil {
		return nil, err
	}
	var errs []error
	if h.Version != version {
		errs = append(errs, fmt.Errorf("version: %q is not %s", h.Version, version))
	}
	if !filepath.IsAbs(h.Hook.Path) {
		errs = append(errs, fmt.Errorf("hook.path: %q is not an absolute path", h.Hook.Path))
	}
	if t := h.Hook.Timeout; t != nil && *t <= 0 {
		errs = append(errs, fmt.Errorf("hook.timeout: %d is not positive", *t))
	}
	w := h.When
	if w.Always == nil && w.HasBindMounts == nil && len(w.Annotations) == 0 && len(w.Commands) == 0 {
		errs = append(errs, errors.New("when: has no condition"))
	}
	if len(h.Stages) == 0 {
		errs = append(errs, errors.New("stages: is empty"))
	}
	for i, s := range h.Stages {
		if list(&specs.Hooks{}, s) == nil {
			errs = append(errs, fmt.Errorf("stages[%d]: %q is no stage", i, s))
		}
	}
	return h, errors.Join(append(errs, h.compile())...)
}

func (h *hook) compile() error {
	var errs []error
	one := func(field, text string) *regexp.Regexp {
		re, err := regexp.Compile(text)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return re
	}
	for _, k := range slices.Sorted(maps.Keys(h.When.Annotations)) {
		h.annotations = append(h.annotations, pattern{one("when.annotations", k), one("when.annotations", h.When.Annotations[k])})
	}
	for _, c := range h.When.Commands {
		h.commands = append(h.commands, one("when.commands", c))
	}
	return errors.Join(errs...)
}

// matches tells whether all conditions hold.
func (h *hook) matches(s *specs.Spec, c Container) bool {
	if h.When.Always != nil && !*h.When.Always {
		return false
	}
	if b := h.When.HasBindMounts; b != nil && *b != c.HasBindMounts {
		return false
	}
	for _, p := range h.annotations {
		if !p.matches(c.Annotations) {
			return false
		}
	}
	if len(h.commands) == 0 {
		return true
	}
	if s.Process == nil || len(s.Process.Args) == 0 {
		return false
	}
	return slices.ContainsFunc(h.commands, func(re *regexp.Regexp) bool { return re.MatchString(s.Process.Args[0]) })
}

func (p pattern) matches(annotations map[string]string) bool {
	for k, v := range annotations {
		if p.key.MatchString(k) && p.value.MatchString(v) {
			return true
		}
	}
	return false
}

// add puts the hook into its stages.
func (h *hook) add(s *specs.Spec) {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, stage := range h.Stages {
		l := list(s.Hooks, stage)
		*l = append(*l, h.Hook)
	}
}

// list is the stage's in a specification; nil for what is no stage.
func list(h *specs.Hooks, stage string) *[]specs.Hook {
	switch stage {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated by the specification, and the stage of most hooks there are
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	}
	return nil
}
