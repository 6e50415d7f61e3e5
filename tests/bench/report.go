// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// report gathers samples by what was measured and by peer.
type report struct {
	Peers   []string           `json:"peers"`
	Image   string             `json:"image"`
	Begin   time.Time          `json:"begin"`
	Figures map[string]*figure `json:"figures"`
	order   []string           // of Figures, as first seen
}

// figure is one thing that was measured.
type figure struct {
	Unit    string               `json:"unit"`
	Samples map[string][]float64 `json:"samples"`
}

func newReport(o *options) *report {
	r := &report{Image: o.work.image, Begin: time.Now().UTC(), Figures: map[string]*figure{}}
	for _, p := range o.peers {
		r.Peers = append(r.Peers, p.name)
	}
	return r
}

func (r *report) add(peer, name, unit string, value float64) {
	f := r.Figures[name]
	if f == nil {
		f = &figure{Unit: unit, Samples: map[string][]float64{}}
		r.Figures[name] = f
		r.order = append(r.order, name)
	}
	f.Samples[peer] = append(f.Samples[peer], value)
}

// verbs in the order of a pod's life.
func verbs() []string {
	return []string{
		"RunPodSandbox", "CreateContainer", "StartContainer", "FirstLogLine", "ExecSync",
		"StopPodSandbox", "RemovePodSandbox",
	}
}

func (r *report) addTimes(peer string, t times) {
	for _, v := range verbs() {
		if d, ok := t[v]; ok {
			r.add(peer, v, "ms", ms(d))
		}
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile interpolates between samples; NaN without any.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(samples))
	at := q * float64(len(s)-1)
	low := int(at)
	if low+1 >= len(s) {
		return s[low]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// print writes one row a figure: p50, p90, p99 of each peer, and the ratio of
// each p50 to the last peer's.
func (r *report) print(w io.Writer) error {
	base := r.Peers[len(r.Peers)-1]
	head := []string{"figure", "unit"}
	for _, p := range r.Peers {
		head = append(head, p+" p50", "p90", "p99")
		if p != base {
			head = append(head, "/"+base)
		}
	}
	rows := [][]string{head}
	for _, name := range r.order {
		f := r.Figures[name]
		row := []string{name, f.Unit}
		for _, p := range r.Peers {
			s := f.Samples[p]
			row = append(row, number(quantile(s, 0.5)), number(quantile(s, 0.9)), number(quantile(s, 0.99)))
			if p != base {
				row = append(row, number(quantile(s, 0.5)/quantile(f.Samples[base], 0.5)))
			}
		}
		rows = append(rows, row)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		if _, err := io.WriteString(tw, strings.Join(row, "\t")+"\t\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }

func (r *report) writeJSON(path string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	return os.WriteFile(path, append(data, '\n'), 0o644) //nolint:gosec // a report for everybody
}

// writeBenchstat writes a file per peer in the format of Go benchmarks, so that
// `benchstat a.txt b.txt` compares them.
func (r *report) writeBenchstat(dir string) error {
	for _, p := range r.Peers {
		var b strings.Builder
		for _, name := range r.order {
			f := r.Figures[name]
			for _, v := range f.Samples[p] {
				fmt.Fprintf(&b, "BenchmarkCRI/%s 1 %g %s\n",
					strings.ReplaceAll(name, " ", "_"), v, strings.ReplaceAll(f.Unit, " ", "_"))
			}
		}
		path := filepath.Join(dir, "cri-"+p+".txt")
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil { //nolint:gosec // a report for everybody
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

// progress overwrites one line on a terminal.
func progress(what string, n, of int) {
	if fi, err := os.Stderr.Stat(); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "\r\x1b[K%s %d/%d", what, n, of)
	if n >= of {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
