// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// sources are the C files and headers by path.
func sources(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, pattern := range []string{"*.c", "lib/*.h", "include/*/*.h"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			out[p] = string(b)
		}
	}
	if len(out) < 10 {
		t.Fatalf("found %d sources", len(out))
	}
	return out
}

const licence = "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */"

// TestStyle holds what the compiler does not: the house rules for C.
func TestStyle(t *testing.T) {
	forbidden := map[string]*regexp.Regexp{
		"conditional compilation: use a constant of config.h": regexp.MustCompile(`(?m)^#\s*(if|ifdef|ifndef)\b`),
		"goto other than out":        regexp.MustCompile(`\bgoto\s+(?:[^o]|o[^u]|ou[^t])`),
		"unrolled loop":              regexp.MustCompile(`#pragma unroll`),
		"bpf_printk":                 regexp.MustCompile(`\bbpf_printk\b`),
		"trailing space":             regexp.MustCompile(`(?m)[ \t]+$`),
		"line of more than 100":      regexp.MustCompile(`(?m)^.{101,}$`),
		"something left to be done":  regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`),
		"legacy map definition":      regexp.MustCompile(`struct bpf_map_def`),
		"C++ comment in a statement": regexp.MustCompile(`(?m)^\s+//`),
	}
	codes := regexp.MustCompile(`return\s+(ACT_|TC_ACT_|TCX_)`)
	for path, src := range sources(t) {
		for what, re := range forbidden {
			if m := re.FindString(src); m != "" {
				t.Errorf("%s: %s: %q", path, what, m)
			}
		}
		header := strings.HasPrefix(src, licence+"\n#pragma once\n")
		program := strings.HasPrefix(src, "//go:build ignore\n\n"+licence)
		if !header && !program {
			t.Errorf("%s: does not begin with licence and #pragma once, or the build constraint", path)
		}
		if n := strings.Count(src, "\n"); n > 400 {
			t.Errorf("%s: %d lines, at most 400", path, n)
		}
		if codes.MatchString(src) && path != "lib/verdict.h" && path != "lib/relay.h" && path != "datapath.c" {
			t.Errorf("%s: returns a code of the kernel's; only lib/verdict.h and lib/relay.h do", path)
		}
		checkFunctions(t, path, src)
	}
}

// checkFunctions says no to functions of more than 60 lines.
func checkFunctions(t *testing.T, path, src string) {
	t.Helper()
	start, name := 0, ""
	lines := strings.Split(src, "\n")
	for i, l := range lines {
		switch {
		case l == "{":
			start, name = i, lines[i-1]
		case l == "}" && start > 0:
			if i-start > 60 {
				t.Errorf("%s: %s has %d lines, at most 60", path, name, i-start)
			}
			start = 0
		}
	}
}

// TestNames: the kernel cuts names off after 15 characters.
func TestNames(t *testing.T) {
	spec, err := LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Maps {
		if len(name) > 15 {
			t.Errorf("map %s: %d characters", name, len(name))
		}
	}
	for name := range spec.Programs {
		if len(name) > 15 {
			t.Errorf("program %s: %d characters", name, len(name))
		}
	}
}

// TestReasons: every reason is given by somebody.
func TestReasons(t *testing.T) {
	spec, err := LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	var reasons *btf.Enum
	if err := spec.Types.TypeByName("reason", &reasons); err != nil {
		t.Fatal(err)
	}
	all := ""
	for path, src := range sources(t) {
		if path != "lib/reason.h" {
			all += src
		}
	}
	for _, v := range reasons.Values {
		if v.Name == "REASON_NONE" || v.Name == "REASON_MAX" {
			continue
		}
		if !regexp.MustCompile(`\b` + v.Name + `\b`).MatchString(all) {
			t.Errorf("nobody gives the reason %s", v.Name)
		}
	}
}
