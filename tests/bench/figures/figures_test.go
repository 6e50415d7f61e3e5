// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		samples []float64
		q, want float64
	}{
		{nil, 0.5, 0},
		{[]float64{3}, 0.99, 3},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 1, 5},
	} {
		if got := Quantile(tc.samples, tc.q); got != tc.want {
			t.Errorf("quantile %v of %v is %v, want %v", tc.q, tc.samples, got, tc.want)
		}
	}
}

// drifting is an area on a machine that becomes three times slower: both peers
// are slowed, and the ratio stays.
func drifting() *Area {
	a := &Area{Name: "test", Command: "make bench"}
	for _, slow := range []float64{1, 1, 3, 3, 3} {
		a.Add("g", "verb", "ms", "us", 10*slow)
		a.Add("g", "verb", "ms", "them", 40*slow)
	}
	a.Add("g", "alone", "1/s", "us", 12345)
	a.Finish()
	return a
}

func TestRatioOfTurns(t *testing.T) {
	if got := drifting().Find("g", "verb").Values["us"].Ratio; got != 0.25 {
		t.Errorf("ratio is %v, want 0.25", got)
	}
	a := &Area{}
	for i := range 3 {
		a.Add("g", "f", "", "us", float64(i))
	}
	a.Add("g", "f", "", "them", 0)
	a.Finish()
	if got := a.Find("g", "f").Values["us"].Ratio; got != 0 {
		t.Errorf("ratio to nothing is %v", got)
	}
}

func TestTargets(t *testing.T) {
	a := drifting()
	for _, tc := range []struct {
		target Target
		want   Mark
	}{
		{Target{Of: Median("g", "verb", "us"), Limit: 30}, Met},
		{Target{Of: Median("g", "verb", "us"), Limit: 29}, NotMet},
		{Target{Of: Ratio("g", "verb", "us"), Limit: 0.25, Least: true}, Met},
		{Target{Of: Ratio("g", "verb", "us"), Limit: 0.3, Least: true}, NotMet},
		{Target{Of: Ratio("g", "alone", "us"), Limit: 1}, NotMeasured},
		{Target{Of: Median("g", "none", "us"), Limit: 1}, NotMeasured},
		{Target{Of: Over(Median("g", "verb", "us"), Median("g", "none", "us")), Limit: 1}, NotMeasured},
		{Target{Of: Plus(Median("g", "verb", "us"), Median("g", "alone", "us")), Limit: 12375}, Met},
		{Target{Of: Worst(true, Median("g", "verb", "us"), Median("g", "alone", "us")), Limit: 31, Least: true}, NotMet},
		{Target{Of: Worst(false, Median("g", "verb", "us"), Median("g", "none", "us")), Limit: 31}, NotMeasured},
	} {
		if v, got := tc.target.Check(a); got != tc.want {
			t.Errorf("%+v is %s at %v, want %s", tc.target.limit(), got, v, tc.want)
		}
	}
	if _, mark := (Target{}).Check(nil); mark != NotMeasured {
		t.Error("an area that was not measured has a mark")
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 5: "5", 0.0123: "0.012", 0.345: "0.34", 4.826: "4.83", 12.34: "12.3", 120: "120", 279.4: "279",
		12345.6: "12,346", 1000000: "1,000,000",
	} {
		if got := number(v); got != want {
			t.Errorf("%v is printed as %s, want %s", v, got, want)
		}
	}
	if got := number(math.NaN()); got != "–" {
		t.Errorf("nothing is printed as %s", got)
	}
}

func TestTables(t *testing.T) {
	const want = "| g | us | ratio | them |\n|---|---|---|---|\n" +
		"| verb, ms | 30 | 0.25 | 120 |\n| alone, 1/s | 12,345 |  |  |\n"
	if got := drifting().Tables(); got != want {
		t.Errorf("table is\n%s, want\n%s", got, want)
	}
}

func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	if err := drifting().Write(dir); err != nil {
		t.Fatal(err)
	}
	back, err := Read(dir, []string{"test", "other"})
	if err != nil || len(back) != 1 {
		t.Fatalf("read %d areas: %v", len(back), err)
	}
	if got := back["test"].Summary().Tables(); got != drifting().Tables() {
		t.Errorf("the summary prints\n%s", got)
	}
	lines, err := os.ReadFile(filepath.Join(dir, "test-them.txt"))
	if err != nil || !strings.HasPrefix(string(lines), "BenchmarkTest/g/verb 1 40 ms\n") || strings.Count(string(lines), "\n") != 5 {
		t.Errorf("lines for benchstat are %q: %v", lines, err)
	}
	if err := back["test"].WriteChart(filepath.Join(dir, "c.svg"), "g"); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(filepath.Join(dir, "c.svg"))
	if err != nil || strings.Count(string(svg), "<rect") != 6 || !strings.Contains(string(svg), "120 ms") {
		t.Errorf("chart is %s: %v", svg, err)
	}
}
