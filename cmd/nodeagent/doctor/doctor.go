// SPDX-License-Identifier: Apache-2.0

// Package doctor owns the list of what a node has to have, and looks whether
// it has it: kernel, capabilities, cgroups, sysctls, programs, leftovers. It
// only reads; nothing on the machine changes.
package doctor

import (
	"context"
	"slices"
)

// Level says how much a finding matters.
type Level string

// The levels, from good to bad.
const (
	OK Level = "ok"
	// Warn: nodeagent runs, without what the finding's Hint names.
	Warn Level = "warn"
	// Fail: nodeagent cannot do its main job.
	Fail Level = "fail"
)

// Finding is what one check saw.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	// Hint says what it costs and what to do; empty when all is well.
	Hint string `json:"hint,omitempty"`
}

// Check looks at one thing. It returns one finding or several, and never fails
// itself: what cannot be read is a finding too.
type Check func(context.Context) []Finding

// Options say where to look.
type Options struct {
	// Root is put before every path that is read; "" on a real node.
	Root string
	// ContainerdSocket is looked at unless empty.
	ContainerdSocket string
	// Programs are looked for in PATH and Path.
	Path string
	// Pools are the directories that volumes live in.
	Pools []string
	// NRIPlugins is the directory of NRI plugins; "" when there are none.
	NRIPlugins string
	// KubeProxy serves this node: what it has in the kernel is no leftover.
	KubeProxy bool
}

// Checks returns the list in the order in which a person wants to read it.
func Checks(o Options) []Check {
	return []Check{
		o.kernel, o.btf, o.bpfFeatures, o.capabilities, o.userNamespaces, o.fileLimit,
		o.cgroups, o.filesystems, o.bpffs, o.rootPropagation, o.loop,
		o.sysctls, o.programs, o.containerd, o.nriPlugins, o.pools, o.kubeProxy,
	}
}

// Run makes all checks, in order.
func Run(ctx context.Context, checks []Check) []Finding {
	var out []Finding
	for _, c := range checks {
		out = append(out, c(ctx)...)
	}
	return out
}

// Worst returns the worst level among findings.
func Worst(findings []Finding) Level {
	order := []Level{OK, Warn, Fail}
	worst := OK
	for _, f := range findings {
		if slices.Index(order, f.Level) > slices.Index(order, worst) {
			worst = f.Level
		}
	}
	return worst
}

func one(check string, level Level, detail, hint string) []Finding {
	if level == OK {
		hint = ""
	}
	return []Finding{{Check: check, Level: level, Detail: detail, Hint: hint}}
}
