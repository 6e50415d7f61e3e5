// SPDX-License-Identifier: Apache-2.0

package image

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// Stages of a pull.
const (
	StageWaiting     = "waiting"
	StageResolving   = "resolving"
	StageDownloading = "downloading"
	StageExtracting  = "extracting"
	StageDone        = "done"
	StageFailed      = "failed"
)

// keepFinished is how many ended pulls stay visible.
const keepFinished = 16

// Layer is the progress of one blob of a pull.
type Layer struct {
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Fetched   int64  `json:"fetched"`
	Extracted int64  `json:"extracted"`
	// Existing blobs were there before.
	Existing bool `json:"existing,omitempty"`
}

// Progress is a pull as a person wants to see it.
type Progress struct {
	Ref     string    `json:"ref"`
	Stage   string    `json:"stage"`
	Started time.Time `json:"started"`
	// Ended is zero while the pull runs.
	Ended time.Time `json:"ended,omitzero"`
	// Fetched of Total bytes are here; Total grows until all manifests are read.
	Fetched int64 `json:"fetched"`
	Total   int64 `json:"total"`
	// Reused of the fetched bytes were here before the pull.
	Reused int64 `json:"reused"`
	// Percent of the bytes, 0 to 100.
	Percent float64 `json:"percent"`
	// BytesPerSecond is the mean of the download so far.
	BytesPerSecond int64 `json:"bytesPerSecond"`
	// ETA is how long the rest of the download takes at that speed; zero: unknown.
	ETA time.Duration `json:"eta,omitempty"`
	// Attempts counts continued downloads, from 1.
	Attempts int     `json:"attempts"`
	Layers   []Layer `json:"layers,omitempty"`
	Error    string  `json:"error,omitempty"`
}

// tracker follows one pull.
type tracker struct {
	ref     string
	started time.Time

	// mu guards what follows.
	mu       sync.Mutex
	stage    string
	ended    time.Time
	attempts int
	resolved bool
	layers   map[digest.Digest]*Layer
	first    time.Time // of the first byte
	existing int64
	err      error
	active   time.Time // of the last sign of life
}

func newTracker(ref string, now time.Time) *tracker {
	return &tracker{ref: ref, started: now, stage: StageWaiting, layers: map[digest.Digest]*Layer{}, active: now}
}

// attempt begins the first or another try.
func (t *tracker) attempt(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.attempts++
	t.stage, t.active, t.resolved = StageResolving, now, false
}

// event takes what the transfer service tells.
func (t *tracker) event(e containerd.PullEvent) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.Desc == nil {
		t.active = now
		return
	}
	if e.Event == "fetching image content" {
		t.resolved, t.active = true, now
		return
	}
	l := t.layers[e.Desc.Digest]
	if l == nil {
		l = &Layer{Digest: e.Desc.Digest.String(), Size: e.Desc.Size}
		t.layers[e.Desc.Digest] = l
	}
	before := l.Fetched
	switch e.Event {
	case "waiting":
		t.stage = StageDownloading
	case "downloading":
		l.Fetched, t.stage = e.Progress, StageDownloading
	case "complete":
		l.Fetched = l.Size
	case "already exists":
		if l.Fetched < l.Size {
			t.existing += l.Size - l.Fetched
			l.Existing = l.Fetched == 0
		}
		l.Fetched, before = l.Size, l.Size
	case "extracting", "extracted":
		l.Fetched, l.Extracted, t.stage = l.Size, e.Progress, StageExtracting
		before = l.Size
	}
	if l.Fetched > before && t.first.IsZero() {
		t.first = now
	}
	t.active = now
}

// idle is how long nothing happened.
func (t *tracker) idle(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return now.Sub(t.active)
}

// hasResolved says whether the registry named the image in this attempt.
func (t *tracker) hasResolved() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.resolved
}

// end closes the book.
func (t *tracker) end(now time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended, t.err, t.stage = now, err, StageDone
	if err != nil {
		t.stage = StageFailed
		return
	}
	for _, l := range t.layers {
		l.Fetched = l.Size
	}
}

// progress describes the pull as of now.
func (t *tracker) progress(now time.Time) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := Progress{
		Ref: t.ref, Stage: t.stage, Started: t.started, Ended: t.ended, Attempts: t.attempts,
		Reused: t.existing,
	}
	for _, d := range slices.Sorted(maps.Keys(t.layers)) {
		l := *t.layers[d]
		p.Layers = append(p.Layers, l)
		p.Fetched += l.Fetched
		p.Total += l.Size
	}
	if p.Total > 0 {
		p.Percent = 100 * float64(p.Fetched) / float64(p.Total)
	}
	if !t.ended.IsZero() {
		now = t.ended
	}
	if over := now.Sub(t.first); !t.first.IsZero() && over > 0 {
		p.BytesPerSecond = int64(float64(p.Fetched-t.existing) / over.Seconds())
	}
	if left := p.Total - p.Fetched; left > 0 && p.BytesPerSecond > 0 && t.ended.IsZero() {
		p.ETA = time.Duration(float64(left) / float64(p.BytesPerSecond) * float64(time.Second)).Round(time.Second)
	}
	if t.err != nil {
		p.Error = t.err.Error()
	}
	return p
}

// board holds the trackers of running and of recently ended pulls.
type board struct {
	// mu guards both lists.
	mu       sync.Mutex
	running  map[*tracker]bool
	finished []*tracker
}

func (b *board) add(t *tracker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running == nil {
		b.running = map[*tracker]bool{}
	}
	b.running[t] = true
}

func (b *board) finish(t *tracker) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, t)
	b.finished = append(b.finished, t)
	if n := len(b.finished) - keepFinished; n > 0 {
		b.finished = slices.Delete(b.finished, 0, n)
	}
}

// Pulls describes the pulls that run and those that ended lately, oldest
// first. It is for people and metrics: the CRI has no progress.
func (s *Service) Pulls() []Progress {
	now := time.Now()
	s.board.mu.Lock()
	all := slices.Collect(maps.Keys(s.board.running))
	all = append(all, s.board.finished...)
	s.board.mu.Unlock()
	out := make([]Progress, 0, len(all))
	for _, t := range all {
		out = append(out, t.progress(now))
	}
	slices.SortFunc(out, func(a, b Progress) int {
		if c := a.Started.Compare(b.Started); c != 0 {
			return c
		}
		return strings.Compare(a.Ref, b.Ref)
	})
	return out
}
