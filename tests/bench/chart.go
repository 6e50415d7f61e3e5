// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"os"
	"strings"
)

// The chart's measures, in SVG user units.
const (
	chartWidth  = 760
	chartLabel  = 190
	chartBar    = 14
	chartGap    = 10
	chartMargin = 16
)

// colours of the peers, first to last.
func colours() []string { return []string{"#2563eb", "#9ca3af", "#d97706", "#059669"} }

// writeChart draws the median of each verb as bars, each verb to the scale of
// its slowest peer.
func (r *report) writeChart(path string) error {
	var b strings.Builder
	y := chartMargin
	for i, p := range r.Peers {
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n",
			chartLabel+i*160, y, colours()[i%len(colours())], chartLabel+i*160+18, y+11, html.EscapeString(p))
	}
	y += 30
	for _, v := range append(verbs(), "CPU per pod") {
		f := r.Figures[v]
		if f == nil {
			continue
		}
		top := 0.0
		for _, p := range r.Peers {
			top = max(top, quantile(f.Samples[p], 0.5))
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", chartLabel-8, y+chartBar, v)
		for i, p := range r.Peers {
			m := quantile(f.Samples[p], 0.5)
			width := m / max(top, 1e-9) * (chartWidth - chartLabel - 90)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%.1f %s</text>`+"\n",
				chartLabel, y, width, chartBar, colours()[i%len(colours())], chartLabel+width+6, y+chartBar-2, m, f.Unit)
			y += chartBar + 2
		}
		y += chartGap
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+
		"\n"+`<rect width="100%%" height="100%%" fill="white"/>`+"\n%s</svg>\n", chartWidth, y+chartMargin, b.String())
	return os.WriteFile(path, []byte(svg), 0o644) //nolint:gosec // a report for everybody
}
