// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"time"
)

// Stream names the origin of a line, in the words of the log format.
type Stream string

// The streams of a container. A container with a terminal has only Stdout.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// timeFormat is RFC 3339 with all nine digits: records sort as text.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// head is more than the time, the stream and the tag take.
const head = 64

// deadliner is what pipes and FIFOs opened as *os.File can do.
type deadliner interface {
	SetReadDeadline(t time.Time) error
}

// Pump copies one stream of a container into the log until its end, which is
// no error. When tee is not nil it gets the same bytes unchanged; its errors
// are its own. Write errors do not stop Pump, for the container must not
// block; the first is returned at the end.
func (l *Log) Pump(s Stream, r io.Reader, tee io.Writer) error {
	l.pumps.Add(1)
	defer l.pumps.Done()
	p := pump{
		log: l, src: r, tee: tee,
		in:    make([]byte, l.opts.MaxLine),
		out:   make([]byte, 0, 2*(l.opts.MaxLine+head)),
		stamp: make([]byte, 0, head),
	}
	if l.opts.Idle > 0 {
		if d, ok := r.(deadliner); ok && d.SetReadDeadline(time.Time{}) == nil {
			p.idle = d
		}
	}
	p.tagF = []byte(" " + string(s) + " F ")
	p.tagP = []byte(" " + string(s) + " P ")
	return p.run()
}

// pump is the state of one Pump call. Nothing in it allocates after its start.
type pump struct {
	log        *Log
	src        io.Reader
	tee        io.Writer
	idle       deadliner // nil: unfinished lines wait for their end
	armed      bool
	in         []byte // in[:fill] is the unfinished line
	fill       int
	since      time.Time // when the unfinished line began
	out        []byte    // records not yet written
	tagF, tagP []byte
	stamp      []byte // the time of the records being added
	first      error
}

// run reads until the source ends.
func (p *pump) run() error {
	for {
		p.arm()
		n, err := p.src.Read(p.in[p.fill:])
		if n > 0 {
			if p.tee != nil {
				_, _ = p.tee.Write(p.in[p.fill : p.fill+n])
			}
			p.take(n)
		}
		switch {
		case err == nil:
		case p.idle != nil && errors.Is(err, os.ErrDeadlineExceeded):
			p.late()
		default:
			p.flushPartial()
			if p.first == nil && !ended(err) {
				p.first = err
			}
			return p.first
		}
	}
}

// ended tells the ways in which a source ends: its end, or that we closed it.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe)
}

// arm sets the deadline while an unfinished line waits, and only then. A busy
// source ends most reads within a line: its deadline is set once for many
// lines, and run asks how old the last of them is.
func (p *pump) arm() {
	if p.idle == nil || (p.fill > 0) == p.armed {
		return
	}
	p.armed = p.fill > 0
	var t time.Time
	if p.armed {
		t = p.since.Add(p.log.opts.Idle)
	}
	if p.idle.SetReadDeadline(t) != nil {
		p.idle = nil
	}
}

// late writes the unfinished line, or waits on when it has just begun.
func (p *pump) late() {
	if time.Since(p.since) < p.log.opts.Idle {
		p.armed = false
		return
	}
	p.flushPartial()
}

// take turns n new bytes behind in[:fill] into records and writes them.
func (p *pump) take(n int) {
	p.stampNow()
	start, end := 0, p.fill+n
	scan := p.fill // in[:fill] is known to hold no line end
	for {
		i := bytes.IndexByte(p.in[scan:end], '\n')
		if i < 0 {
			break
		}
		line := p.in[start : scan+i]
		if k := len(line) - 1; k >= 0 && line[k] == '\r' {
			line = line[:k] // a terminal ends lines with both
		}
		p.add(p.tagF, line)
		scan += i + 1
		start = scan
	}
	if p.idle != nil && (start > 0 || p.fill == 0) {
		p.since = time.Now()
	}
	if start > 0 {
		copy(p.in, p.in[start:end])
		end -= start
	}
	p.fill = end
	if p.fill == len(p.in) {
		p.cut()
	}
	p.flush()
}

// cut writes a full buffer as a partial record; a final '\r' stays, because
// its '\n' may follow.
func (p *pump) cut() {
	keep := 0
	if len(p.in) > 1 && p.in[p.fill-1] == '\r' {
		keep = 1
	}
	p.add(p.tagP, p.in[:p.fill-keep])
	p.in[0] = '\r'
	p.fill = keep
}

// flushPartial writes the unfinished line.
func (p *pump) flushPartial() {
	if p.fill == 0 {
		return
	}
	p.stampNow()
	p.add(p.tagP, p.in[:p.fill])
	p.fill = 0
	p.flush()
}

// stampNow reads the clock once for all records of one read.
func (p *pump) stampNow() {
	p.stamp = p.log.opts.Now().AppendFormat(p.stamp[:0], timeFormat)
}

// add appends one record to out, writing out first when it is full.
func (p *pump) add(tag, text []byte) {
	if len(p.out)+len(text)+head > cap(p.out) {
		p.flush()
	}
	p.out = append(p.out, p.stamp...)
	p.out = append(p.out, tag...)
	p.out = append(p.out, text...)
	p.out = append(p.out, '\n')
}

// flush writes the records in out.
func (p *pump) flush() {
	if err := p.log.write(p.out); err != nil && p.first == nil && !errors.Is(err, ErrClosed) {
		p.first = err
	}
	p.out = p.out[:0]
}
