// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// number prints three digits, as many as a figure from a shared machine is worth.
func number(v float64) string {
	switch abs := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case v == math.Trunc(v) && abs < 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case abs >= 1000:
		return thousands(int64(math.Round(v)))
	case abs >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case abs >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case abs >= 0.1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

// With prints a value with its unit.
func With(v float64, unit string) string { return strings.TrimSpace(number(v) + " " + unit) }

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Targets prints a table of targets with what was measured and a mark.
func Targets(a *Area, targets []Target) string {
	if len(targets) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("| target | | measured | |\n|---|---|---|---|\n")
	for _, t := range targets {
		v, mark := t.Check(a)
		value := ""
		if mark != NotMeasured {
			value = With(v, t.Unit)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.Name, t.limit(), value, mark)
	}
	return b.String()
}

// Tables prints all figures, a table a group: the median of each peer, (p90,
// p99) where there are enough samples, and ratios to the last peer.
func (a *Area) Tables() string {
	var groups []string
	for _, f := range a.Figures {
		if !slices.Contains(groups, f.Group) {
			groups = append(groups, f.Group)
		}
	}
	var b strings.Builder
	for i, g := range groups {
		if i > 0 {
			b.WriteString("\n")
		}
		a.table(&b, g)
	}
	return b.String()
}

func (a *Area) table(b *strings.Builder, group string) {
	var peers []string
	figures := slices.DeleteFunc(slices.Clone(a.Figures), func(f *Figure) bool { return f.Group != group })
	ratios := false
	for _, f := range figures {
		at := 0 // a peer that only later figures have stands where they name it
		for _, p := range f.Peers {
			if i := slices.Index(peers, p); i >= 0 {
				at = i + 1
				continue
			}
			peers = slices.Insert(peers, min(at, len(peers)), p)
			at++
		}
		ratios = ratios || len(f.Peers) > 1
	}
	fmt.Fprintf(b, "| %s |", group)
	for i, p := range peers {
		fmt.Fprintf(b, " %s |", p)
		if ratios && i < len(peers)-1 {
			b.WriteString(" ratio |")
		}
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(peers)))
	if ratios {
		b.WriteString(strings.Repeat("---|", len(peers)-1))
	}
	b.WriteString("\n")
	for _, f := range figures {
		fmt.Fprintf(b, "| %s |", strings.TrimSuffix(f.Name+", "+f.Unit, ", "))
		for i, p := range peers {
			fmt.Fprintf(b, " %s |", f.Values[p].cell())
			if ratios && i < len(peers)-1 {
				fmt.Fprintf(b, " %s |", f.Values[p].ratioCell())
			}
		}
		b.WriteString("\n")
	}
}

// tail is how many samples make a p99 worth printing, half of it a p90.
const tail = 20

func (v *Values) cell() string {
	switch {
	case v == nil:
		return ""
	case v.N >= tail:
		return fmt.Sprintf("%s (%s, %s)", number(v.P50), number(v.P90), number(v.P99))
	case v.N >= tail/2:
		return fmt.Sprintf("%s (%s)", number(v.P50), number(v.P90))
	default:
		return number(v.P50)
	}
}

func (v *Values) ratioCell() string {
	if v == nil || v.Ratio == 0 {
		return ""
	}
	return number(v.Ratio)
}

// Caption says where the figures come from.
func (a *Area) Caption() string {
	return fmt.Sprintf("`%s`, %s, %s, %d CPUs, Linux %s, %.0f s.",
		a.Command, a.Version, a.Begin.UTC().Format(time.DateOnly), a.CPUs, a.Kernel, a.Seconds)
}
