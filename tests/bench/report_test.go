// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
)

// TestDocs: no figure in the docs that the benchmarks did not write.
func TestDocs(t *testing.T) {
	results, err := readSummary("../../docs/benchmarks.json")
	if err != nil {
		t.Fatal(err)
	}
	all := defaults().areas()
	for _, page := range []string{"../../docs/benchmarks.md", "../../README.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(render(string(text), all, results), "\n")
		for i, line := range strings.Split(string(text), "\n") {
			if i >= len(want) || line != want[i] {
				t.Fatalf("%s:%d is not what `make bench-docs` writes: %q", page, i+1, line)
			}
		}
	}
}

// TestDocsShowEveryArea: each area has its place on the page.
func TestDocsShowEveryArea(t *testing.T) {
	text, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range defaults().areas() {
		if !strings.Contains(string(text), "## "+a.title+"\n") || !strings.Contains(string(text), "<!-- bench:"+a.name+" -->") {
			t.Errorf("docs/benchmarks.md has no section for %s", a.name)
		}
	}
}

// TestTargetsAreMeasured: a target's figure is found when the area has it;
// nothing is marked met without.
func TestTargetsAreMeasured(t *testing.T) {
	for _, a := range defaults().areas() {
		for _, target := range a.targets {
			if _, mark := target.Check(&figures.Area{}); mark != figures.NotMeasured {
				t.Errorf("%s: %s is %s without a figure", a.name, target.Name, mark)
			}
		}
	}
}

func TestParseRun(t *testing.T) {
	for _, bad := range [][]string{{"--only", "nothing"}, {"--parallel", "1,x"}, {"--socket", "crio"}, {"--n"}} {
		if _, err := parseRun(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	o, err := parseRun([]string{"--only", "cri,volumes", "--quick", "--n=7"})
	if os.Geteuid() != 0 {
		if err == nil {
			t.Error("runs without root")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := o.command(o.areas[1]); got != `make bench ARGS="--only volumes --n=7 --quick=true"` {
		t.Errorf("command is %s", got)
	}
	if o.settings.runtimes.Pods != 7 || o.settings.volumes.Verbs != 3 {
		t.Errorf("settings are %+v", o.settings)
	}
}
