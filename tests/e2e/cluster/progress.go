// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Progress prints what is being done for how long. On a terminal the line of a
// step that is still going counts the seconds. A nil *Progress prints nothing.
type Progress struct {
	mu    sync.Mutex // guards out
	out   io.Writer
	live  bool
	begun time.Time
}

// NewProgress prints to f.
func NewProgress(f *os.File) *Progress {
	return &Progress{out: f, live: term.IsTerminal(int(f.Fd())), begun: time.Now()}
}

// Step does something and says how it went.
func (p *Progress) Step(name string, do func() error) error {
	if p == nil {
		return do()
	}
	t0, done := time.Now(), make(chan struct{})
	var wg sync.WaitGroup
	if p.live {
		wg.Go(func() { p.spin(name, t0, done) })
	}
	err := do()
	close(done)
	wg.Wait()
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	wipe := ""
	if p.live {
		wipe = "\r\033[K"
	}
	p.printf("%s  %s %-38s %6.1f s\n", wipe, mark, name, time.Since(t0).Seconds())
	return err
}

func (p *Progress) spin(name string, t0 time.Time, done <-chan struct{}) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for frame := 0; ; frame++ {
		p.printf("\r\033[K  %c %-38s %6.1f s", []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[frame%10], name, time.Since(t0).Seconds())
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// Say prints a line.
func (p *Progress) Say(format string, args ...any) {
	if p != nil {
		p.printf(format+"\n", args...)
	}
}

// Elapsed is the time since the progress began.
func (p *Progress) Elapsed() time.Duration { return time.Since(p.begun) }

func (p *Progress) printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.out, format, args...)
}
