// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
)

// show prints one area as it stands in the docs.
func show(w io.Writer, a area, result *figures.Area) error {
	_, err := io.WriteString(w, section(a, result)+"\n")
	return err
}

// section is an area's part of the docs: targets, chart, tables.
func section(a area, result *figures.Area) string {
	parts := []string{result.Caption() + "\n"}
	if t := figures.Targets(result, a.targets); t != "" {
		parts = append(parts, t)
	}
	if a.chart != "" {
		parts = append(parts, fmt.Sprintf("![%s](bench-%s.svg)\n", a.title, a.name))
	}
	return strings.Join(append(parts, result.Tables()), "\n")
}

// overview counts what is met, over all areas.
func overview(all []area, results map[string]*figures.Area) string {
	var b strings.Builder
	b.WriteString("| area | met | not met | not measured |\n|---|---|---|---|\n")
	for _, a := range all {
		missed, counts := []string{}, map[figures.Mark]int{}
		for _, t := range a.targets {
			_, mark := t.Check(results[a.name])
			counts[mark]++
			if mark == figures.NotMet {
				missed = append(missed, t.Name)
			}
		}
		if len(a.targets) == 0 {
			continue
		}
		missing := ""
		if counts[figures.NotMeasured] > 0 {
			missing = fmt.Sprint(counts[figures.NotMeasured])
		}
		fmt.Fprintf(&b, "| [%s](#%s) | %d of %d | %s | %s |\n", a.title, anchor(a.title),
			counts[figures.Met], len(a.targets), strings.Join(missed, "; "), missing)
	}
	return b.String()
}

// anchor is what a heading is called in a link.
func anchor(title string) string {
	return strings.ReplaceAll(strings.ToLower(strings.ReplaceAll(title, ",", "")), " ", "-")
}

func report(args []string) error {
	fs := flag.NewFlagSet("bench report", flag.ContinueOnError)
	out := fs.String("out", "tests/bench/out", "directory with results")
	if err := fs.Parse(args); err != nil {
		return err
	}
	all := defaults().areas()
	results, err := figures.Read(*out, names(all))
	if err != nil {
		return err
	}
	fmt.Println(overview(all, results))
	for _, a := range all {
		if r := results[a.name]; r != nil {
			fmt.Printf("## %s\n\n%s\n", a.title, section(a, r))
		}
	}
	return nil
}

// Files of the docs that this program writes, or writes parts of.
const (
	docsPage    = "benchmarks.md"
	docsResults = "benchmarks.json"
	readme      = "README.md" // beside the docs
)

// docs takes the stored results into the docs: a summary as JSON, the tables
// made from it, and the charts. Areas without new results stay as they were.
func docs(args []string) error {
	fs := flag.NewFlagSet("bench docs", flag.ContinueOnError)
	out := fs.String("out", "tests/bench/out", "directory with results")
	dir := fs.String("docs", "docs", "directory of the docs")
	if err := fs.Parse(args); err != nil {
		return err
	}
	all := defaults().areas()
	results, err := figures.Read(*out, names(all))
	if err != nil {
		return err
	}
	known, err := readSummary(filepath.Join(*dir, docsResults))
	if err != nil {
		return err
	}
	for _, a := range all {
		r := results[a.name]
		if r == nil {
			continue
		}
		known[a.name] = r.Summary()
		if a.chart == "" {
			continue
		}
		if err := r.WriteChart(filepath.Join(*dir, "bench-"+a.name+".svg"), a.chart); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(known, "", " ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(*dir, docsResults), append(data, '\n'), 0o644); err != nil { //nolint:gosec // docs
		return fmt.Errorf("write docs: %w", err)
	}
	for _, page := range []string{filepath.Join(*dir, docsPage), filepath.Join(*dir, "..", readme)} {
		if err := rewrite(page, all, known); err != nil {
			return err
		}
	}
	return nil
}

func readSummary(path string) (map[string]*figures.Area, error) {
	out := map[string]*figures.Area{}
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("read results of the docs: %w", err)
	}
	return out, nil
}

func rewrite(page string, all []area, results map[string]*figures.Area) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("read docs: %w", err)
	}
	if err := os.WriteFile(page, []byte(render(string(text), all, results)), 0o644); err != nil { //nolint:gosec // docs
		return fmt.Errorf("write docs: %w", err)
	}
	return nil
}

// render puts the results between the page's markers, "<!-- bench:cri -->" and
// "<!-- end -->"; "overview" and "headline" are of all areas.
func render(page string, all []area, results map[string]*figures.Area) string {
	var b strings.Builder
	inside := false
	for line := range strings.Lines(page) {
		name, opens := strings.CutPrefix(strings.TrimSpace(line), "<!-- bench:")
		switch {
		case opens:
			inside = true
			b.WriteString(line + "\n" + content(strings.TrimSuffix(name, " -->"), all, results) + "\n")
		case strings.TrimSpace(line) == "<!-- end -->":
			inside = false
			b.WriteString(line)
		case !inside:
			b.WriteString(line)
		}
	}
	return b.String()
}

func content(name string, all []area, results map[string]*figures.Area) string {
	switch name {
	case "overview":
		return overview(all, results)
	case "headline":
		return headline(results)
	}
	i := slices.Index(names(all), name)
	if i < 0 || results[name] == nil {
		return "Not measured yet.\n"
	}
	return section(all[i], results[name])
}
