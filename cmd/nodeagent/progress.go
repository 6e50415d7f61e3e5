// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// progressTo is where progress is drawn: w when it is a terminal, else nowhere.
func progressTo(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return w
		}
	}
	return io.Discard
}

// barWidth is the width of a bar between its brackets.
const barWidth = 30

// drawBar draws how much of all is done in the place of what was drawn before.
func drawBar(w io.Writer, done, all int64, text string) {
	full := int(min(max(done, 0)*barWidth/max(all, 1), barWidth))
	_, _ = fmt.Fprintf(w, "\r\x1b[K[%s%s] %s", strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), text)
}

// clearBar takes it away.
func clearBar(w io.Writer) { _, _ = fmt.Fprint(w, "\r\x1b[K") }
