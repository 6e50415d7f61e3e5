// SPDX-License-Identifier: Apache-2.0

// Package figures holds what the benchmarks measured: samples by figure and by
// peer, their quantiles and ratios, the targets they are held against, and the
// tables, charts and files that show them.
package figures

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Area is what one area of the benchmarks measured in one run.
type Area struct {
	Name string `json:"name"`
	// Command measures it again.
	Command string    `json:"command"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Version string    `json:"version"`
	Begin   time.Time `json:"begin"`
	Seconds float64   `json:"seconds"`
	// Figures are in the order in which they were first seen.
	Figures []*Figure `json:"figures"`
}

// Figure is one thing that was measured.
type Figure struct {
	// Group is the table it stands in.
	Group string `json:"group"`
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	// Values are what was measured of each peer, in the order of measuring.
	Values map[string]*Values `json:"values"`
	// Peers are the names of those in the order in which they were first seen.
	Peers []string `json:"peers"`
}

// Values are the samples of one peer, or what a summary keeps of them.
type Values struct {
	Samples []float64 `json:"samples,omitempty"`
	N       int       `json:"n"`
	P50     float64   `json:"p50"`
	P90     float64   `json:"p90"`
	P99     float64   `json:"p99"`
	// Ratio is to the base peer of the figure, the last one; 0 for that itself.
	Ratio float64 `json:"ratio,omitempty"`
}

// Add notes one sample.
func (a *Area) Add(group, name, unit, peer string, value float64) {
	i := slices.IndexFunc(a.Figures, func(f *Figure) bool { return f.Group == group && f.Name == name })
	if i < 0 {
		i = len(a.Figures)
		a.Figures = append(a.Figures, &Figure{Group: group, Name: name, Unit: unit, Values: map[string]*Values{}})
	}
	f := a.Figures[i]
	if f.Values[peer] == nil {
		f.Values[peer] = &Values{}
		f.Peers = append(f.Peers, peer)
	}
	f.Values[peer].Samples = append(f.Values[peer].Samples, value)
}

// Duration notes one sample in milliseconds.
func (a *Area) Duration(group, name, peer string, d time.Duration) {
	a.Add(group, name, "ms", peer, float64(d)/float64(time.Millisecond))
}

// Finish computes what is read later. Where peers were sampled equally often,
// they were sampled in turn, and a ratio is the median of the turns' ratios: a
// machine that drifts moves both halves of a turn.
func (a *Area) Finish() {
	for _, f := range a.Figures {
		base := f.Values[f.Peers[len(f.Peers)-1]].Samples
		for _, v := range f.Values {
			s := v.Samples
			v.N, v.P50, v.P90, v.P99 = len(s), Quantile(s, 0.5), Quantile(s, 0.9), Quantile(s, 0.99)
		}
		for _, p := range f.Peers[:len(f.Peers)-1] {
			f.Values[p].Ratio = ratio(f.Values[p].Samples, base)
		}
	}
}

func ratio(samples, base []float64) float64 {
	if len(samples) != len(base) {
		return finite(Quantile(samples, 0.5) / Quantile(base, 0.5))
	}
	turns := make([]float64, len(samples))
	for i := range samples {
		turns[i] = samples[i] / base[i]
	}
	return finite(Quantile(turns, 0.5))
}

func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// Find returns a figure, or nil.
func (a *Area) Find(group, name string) *Figure {
	if a == nil {
		return nil
	}
	for _, f := range a.Figures {
		if f.Group == group && f.Name == name {
			return f
		}
	}
	return nil
}

// Quantile interpolates between samples; 0 without any.
func Quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	at := q * float64(len(s)-1)
	low := int(at)
	if low+1 >= len(s) {
		return s[low]
	}
	return s[low] + (at-float64(low))*(s[low+1]-s[low])
}

// Write stores the area with all samples in dir, as JSON and, a file a peer, in
// the format of Go's benchmarks for benchstat.
func (a *Area) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	data, err := json.MarshalIndent(a, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", a.Name, err)
	}
	if err := write(filepath.Join(dir, a.Name+".json"), data); err != nil {
		return err
	}
	return a.writeBenchstat(dir)
}

// Read returns the areas that are stored in dir, of those names.
func Read(dir string, names []string) (map[string]*Area, error) {
	out := map[string]*Area{}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name+".json"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
		a := &Area{}
		if err := json.Unmarshal(data, a); err != nil {
			return nil, fmt.Errorf("read results of %s: %w", name, err)
		}
		out[name] = a
	}
	return out, nil
}

// Summary is the area without its samples.
func (a *Area) Summary() *Area {
	out := *a
	out.Figures = nil
	for _, f := range a.Figures {
		g := *f
		g.Values = map[string]*Values{}
		for p, v := range f.Values {
			w := *v
			w.Samples = nil
			g.Values[p] = &w
		}
		out.Figures = append(out.Figures, &g)
	}
	return &out
}

func write(path string, data []byte) error {
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil { //nolint:gosec // a report for everybody
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
