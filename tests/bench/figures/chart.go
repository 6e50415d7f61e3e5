// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"html"
	"os"
	"slices"
	"strings"
)

// The chart's measures, in SVG user units.
const (
	chartWidth  = 760
	chartLabel  = 240
	chartBar    = 14
	chartGap    = 10
	chartMargin = 16
	chartLegend = 150
)

// colours of the peers, first to last.
func colours() []string {
	return []string{"#2563eb", "#9ca3af", "#d97706", "#059669", "#7c3aed", "#db2777", "#0891b2", "#4b5563"}
}

// WriteChart draws the medians of one group's figures as bars, each figure to
// the scale of its largest.
func (a *Area) WriteChart(path, group string) error {
	var b strings.Builder
	figures := slices.DeleteFunc(slices.Clone(a.Figures), func(f *Figure) bool { return f.Group != group })
	var peers []string
	for _, f := range figures {
		for _, p := range f.Peers {
			if !slices.Contains(peers, p) {
				peers = append(peers, p)
			}
		}
	}
	colour := func(peer string) string { return colours()[slices.Index(peers, peer)%len(colours())] }
	y := chartMargin
	for i, p := range peers {
		x := chartMargin + i%4*(chartLegend+30)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			x, y, colour(p), x+18, y+11, html.EscapeString(p))
		if i%4 == 3 && i < len(peers)-1 {
			y += 18
		}
	}
	y += 30
	for _, f := range figures {
		y = f.draw(&b, y, colour)
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+
		"\n"+`<rect width="100%%" height="100%%" fill="white"/>`+"\n%s</svg>\n", chartWidth, y+chartMargin, b.String())
	if err := os.WriteFile(path, []byte(svg), 0o644); err != nil { //nolint:gosec // a report for everybody
		return fmt.Errorf("write chart: %w", err)
	}
	return nil
}

func (f *Figure) draw(b *strings.Builder, y int, colour func(string) string) int {
	top := 0.0
	for _, v := range f.Values {
		top = max(top, v.P50)
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLabel-8, y+chartBar-2, html.EscapeString(f.Name))
	for _, p := range f.Peers {
		m := f.Values[p].P50
		width := m / max(top, 1e-9) * (chartWidth - chartLabel - 110)
		fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s %s</text>`+"\n",
			chartLabel, y, width, chartBar, colour(p), chartLabel+width+6, y+chartBar-2, number(m), html.EscapeString(f.Unit))
		y += chartBar + 2
	}
	return y + chartGap
}
