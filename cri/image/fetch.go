// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// keepBroken is how long what a failed pull has fetched waits for the next try.
const keepBroken = time.Hour

// run makes one pull from the queue to the index.
func (s *Service) run(ctx context.Context, req request) (img *Image, retErr error) {
	t := newTracker(req.ref, time.Now())
	s.board.add(t)
	defer func() {
		t.end(time.Now(), retErr)
		s.metrics.pulled(t.progress(time.Now()), retErr)
		s.board.finish(t)
	}()
	if s.slots != nil {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return nil, fmt.Errorf("pull image %s: %w", req.ref, context.Cause(ctx))
		}
	}
	rec, err := s.fetch(ctx, req, t)
	if err != nil {
		return nil, explain(req.ref, err)
	}
	img, err = s.record(ctx, req, rec)
	if err != nil {
		return nil, fmt.Errorf("pull image %s: %w", req.ref, err)
	}
	p := t.progress(time.Now())
	s.log.InfoContext(ctx, "image pulled", "image", req.ref, "id", img.ID, "bytes", p.Total-p.Reused,
		"duration", time.Since(t.started).Round(time.Millisecond), "attempts", p.Attempts)
	return img, nil
}

// fetch lets containerd fetch and unpack, again when a download breaks. One
// lease over all attempts keeps what was fetched.
func (s *Service) fetch(ctx context.Context, req request, t *tracker) (rec containerd.ImageRecord, retErr error) {
	access, err := s.access(req.cred, registryOf(req.ref), req.hostsDir)
	if err != nil {
		return rec, err
	}
	defer access.remove()
	lease, err := s.deps.Puller.CreatePullLease(ctx, req.ref)
	if err != nil {
		return rec, err
	}
	defer func() { s.settle(ctx, req.ref, lease, retErr == nil) }()
	pull := containerd.Pull{
		Ref: req.ref, Snapshotter: req.snapshotter, Labels: s.fresh(req.ref),
		HostsDir: access.hostsDir, Header: access.header, Credentials: req.cred.forHost,
		Lease: lease, Progress: t.event,
	}
	for attempt := 0; ; attempt++ {
		t.attempt(time.Now())
		rec, err := s.attempt(ctx, pull, t)
		if err == nil || attempt >= s.cfg.PullRetries || !t.hasResolved() || !broken(err) {
			return rec, err
		}
		pause := min(500*time.Millisecond<<attempt, 10*time.Second)
		s.log.WarnContext(ctx, "download broke, continuing", "image", req.ref, "attempt", attempt+1, "pause", pause, "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return rec, context.Cause(ctx)
		}
	}
}

// attempt makes one call to containerd and ends it when nothing moves.
func (s *Service) attempt(ctx context.Context, pull containerd.Pull, t *tracker) (containerd.ImageRecord, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if limit := s.cfg.PullProgressTimeout; limit > 0 {
		watch := time.NewTicker(max(limit/10, time.Millisecond))
		stopped := make(chan struct{})
		defer func() { <-stopped }()
		defer watch.Stop()
		defer cancel(nil)
		go func() {
			defer close(stopped)
			for {
				select {
				case <-ctx.Done():
					return
				case now := <-watch.C:
					if idle := t.idle(now); idle >= limit {
						cancel(fmt.Errorf("%w for %s", errNoProgress, limit))
					}
				}
			}
		}()
	}
	rec, err := s.deps.Puller.PullImage(ctx, pull)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return rec, err
}

// settle ends the pull's lease: after success with those of earlier failures,
// after a failure later, by sweep, so that the next pull continues.
func (s *Service) settle(ctx context.Context, ref, lease string, success bool) {
	if !success {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	ids := []string{lease}
	leases, err := s.deps.Puller.PullLeases(ctx)
	for _, l := range leases {
		if l.Ref == ref && l.ID != lease && !s.pullingRef(ref) {
			ids = append(ids, l.ID)
		}
	}
	if err = errors.Join(err, s.deps.Puller.DeleteLeases(ctx, ids...)); err != nil {
		s.log.WarnContext(ctx, "lease of pull is left to expire", "image", ref, "err", err)
	}
}

// pullingRef says whether more than one pull of a reference is in flight.
func (s *Service) pullingRef(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for key := range s.pulls {
		if strings.HasPrefix(key, ref+"\x00") {
			n++
		}
	}
	return n > 1
}

// sweep deletes the leases of pulls that failed long ago, also of those before
// a restart of this process.
func (s *Service) sweep(ctx context.Context) error {
	leases, err := s.deps.Puller.PullLeases(ctx)
	if err != nil {
		return err
	}
	var old []string
	for _, l := range leases {
		if time.Since(l.Created) > keepBroken && !s.inFlight(l.Ref) {
			old = append(old, l.ID)
		}
	}
	return s.deps.Puller.DeleteLeases(ctx, old...)
}

// inFlight says whether any pull of a reference runs.
func (s *Service) inFlight(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.pulls {
		if strings.HasPrefix(key, ref+"\x00") {
			return true
		}
	}
	return false
}

// record writes the other names of a pulled image and puts all into the index,
// so that the very next call finds it.
func (s *Service) record(ctx context.Context, req request, rec containerd.ImageRecord) (*Image, error) {
	info, err := s.deps.Records.InspectImage(ctx, rec.Target)
	if err != nil {
		return nil, err
	}
	recs := map[string]containerd.ImageRecord{}
	add := func(name string) {
		if name != "" {
			recs[name] = containerd.ImageRecord{Name: name, Target: rec.Target, Labels: s.labels(req.ref)}
		}
	}
	tag, repoDigest := names(req.ref, rec.Target.Digest)
	add(req.ref)
	add(tag)
	add(repoDigest)
	add(info.ConfigDigest.String())
	for _, name := range slices.Sorted(maps.Keys(recs)) {
		if err := s.deps.Records.PutImageRecord(ctx, recs[name]); err != nil {
			return nil, err
		}
		s.index.put(recs[name], &info)
	}
	if s.cfg.CheckContent {
		s.unsynced(req.ref)
	}
	return s.index.lookup(info.ConfigDigest.String())
}

// labels of an image's records, as containerd's CRI sets them.
func (s *Service) labels(ref string) map[string]string {
	l := map[string]string{labelManaged: managed}
	for _, p := range s.cfg.Pinned {
		if named, err := reference.ParseDockerRef(p); err == nil && named.String() == ref {
			l[labelPinned] = pinned
		}
	}
	return l
}

// fresh are the labels of the record that the pull itself writes: it is marked
// until its layers are on the disk.
func (s *Service) fresh(ref string) map[string]string {
	l := s.labels(ref)
	if s.cfg.CheckContent {
		l[labelUnsynced] = s.boot
	}
	return l
}

// registryOf returns the host part of a full reference.
func registryOf(ref string) string {
	host, _, _ := strings.Cut(ref, "/")
	return host
}

// broken says whether an error is that of a connection which may work again.
func broken(err error) bool {
	if errors.Is(err, errNoProgress) || errdefs.IsUnavailable(err) { // containerd restarts
		return true
	}
	if unpacking(err) {
		return false
	}
	return containsAny(err.Error(), "unexpected EOF", "connection reset", "broken pipe", "short read",
		"i/o timeout", "http2: ", "connection refused", "TLS handshake timeout", "500 ", "502 ", "503 ", "504 ",
		"server closed")
}

// unpacking says whether an error is about unpacking what was fetched.
func unpacking(err error) bool { return strings.Contains(err.Error(), "failed to extract layer") }

// explain gives an error the text that the kubelet looks for, and its kind.
func explain(ref string, err error) error {
	wrapped := fmt.Errorf("pull image %s: %w", ref, withoutQueries(err))
	text := err.Error()
	switch {
	case containsAny(text, "image verifier"):
		return fmt.Errorf("%w: %w", crierrors.ErrSignatureValidationFailed, wrapped)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, errStopping), errors.Is(err, errAbandoned):
		return wrapped
	case unpacking(err), errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return wrapped
	case errors.Is(err, errNoProgress), containsAny(text, "connection refused", "no such host", "i/o timeout",
		"no route to host", "network is unreachable", "TLS handshake timeout", "connection reset", "server misbehaving",
		"unexpected EOF", "Temporary failure in name resolution",
		"500 Internal", "502 Bad", "503 Service", "504 Gateway", "429 Too Many"):
		return fmt.Errorf("%w: %w", crierrors.ErrRegistryUnavailable, wrapped)
	default:
		return wrapped
	}
}

func containsAny(s string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(s, p) })
}

// cleaned is an error whose text carries no query strings: those of storage
// behind registries are credentials.
type cleaned struct {
	text string
	err  error
}

func (c *cleaned) Error() string { return c.text }
func (c *cleaned) Unwrap() error { return c.err }

// withoutQueries removes the queries of all URLs in an error's text.
func withoutQueries(err error) error {
	words := strings.SplitAfter(err.Error(), " ")
	changed := false
	for i, w := range words {
		start := strings.Index(w, "http")
		q := strings.IndexByte(w, '?')
		if start < 0 || q < start {
			continue
		}
		if _, perr := url.Parse(w[start:q]); perr != nil {
			continue
		}
		end := strings.TrimLeft(w[q:], "?"+urlChars)
		words[i] = w[:q] + "?[redacted]" + end
		changed = true
	}
	if !changed {
		return err
	}
	return &cleaned{text: strings.Join(words, ""), err: err}
}

// urlChars may stand in a query.
const urlChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/%"
