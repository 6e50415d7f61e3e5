// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// linger is how long a pull goes on that nobody waits for any more: a kubelet
// that restarts, or whose call timed out, asks again.
const linger = 30 * time.Second

// request is one pull, identified by what makes it the same as another.
type request struct {
	ref         string // normalized
	snapshotter string
	cred        credential
	// hostsDir is the root of the hosts.toml files.
	hostsDir string
}

func (r request) key() string {
	return r.ref + "\x00" + r.snapshotter + "\x00" + r.cred.fingerprint() + "\x00" + r.hostsDir
}

// pulling is a pull in flight that any number of callers wait for.
type pulling struct {
	done chan struct{}
	img  *Image // valid after done
	err  error

	cancel  context.CancelCauseFunc
	waiters int         // guarded by Service.mu
	abandon *time.Timer // guarded by Service.mu; runs while nobody waits
}

// Causes for which a pull ends before its time.
var (
	errStopping   = errors.New("image service stops")
	errAbandoned  = errors.New("nobody waits for the pull any more")
	errNoProgress = errors.New("no progress")
)

// PullImage fetches and unpacks an image and returns its id. Identical pulls
// are one; a caller that gives up leaves the pull to those that come back
// within half a minute.
func (s *Service) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	req, err := s.request(r)
	if err != nil {
		return nil, err
	}
	img, err := s.pull(ctx, req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: img.ID}, nil
}

// request checks and normalizes what the CRI asks for.
func (s *Service) request(r *runtimeapi.PullImageRequest) (request, error) {
	name := r.GetImage().GetImage()
	if name == "" {
		return request{}, fmt.Errorf("image.image: empty reference: %w", errdefs.ErrInvalidArgument)
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return request{}, fmt.Errorf("image.image: %q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	snapshotter, err := s.Snapshotter(r.GetImage().GetRuntimeHandler())
	if err != nil {
		return request{}, err
	}
	cred, err := parseAuth(r.GetAuth())
	if err != nil {
		return request{}, err
	}
	hostsDir, err := s.hostsDir(r.GetSandboxConfig().GetMetadata().GetNamespace(), registryOf(named.String()))
	if err != nil {
		return request{}, err
	}
	return request{ref: named.String(), snapshotter: snapshotter, cred: cred, hostsDir: hostsDir}, nil
}

// Snapshotter returns the snapshotter of a runtime handler; an unknown handler
// is errdefs.ErrInvalidArgument.
func (s *Service) Snapshotter(handler string) (string, error) {
	if handler != "" && s.deps.KnownHandler != nil && !s.deps.KnownHandler(handler) {
		return "", fmt.Errorf("runtime handler %q is not configured: %w", handler, errdefs.ErrInvalidArgument)
	}
	if name, ok := (*s.byHandler.Load())[handler]; ok {
		return name, nil
	}
	return s.deps.Snapshotter, nil
}

// SetSnapshotters replaces the snapshotters by runtime handler.
func (s *Service) SetSnapshotters(byHandler map[string]string) { s.byHandler.Store(&byHandler) }

// pull joins the identical pull in flight or starts one.
func (s *Service) pull(ctx context.Context, req request) (*Image, error) {
	p, err := s.join(ctx, req)
	if err != nil {
		return nil, err
	}
	defer s.leave(p)
	select {
	case <-p.done:
		return p.img, p.err
	case <-ctx.Done():
		return nil, fmt.Errorf("pull image %s: %w", req.ref, ctx.Err())
	}
}

// join finds or starts the pull.
func (s *Service) join(ctx context.Context, req request) (*pulling, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runCtx == nil || s.runCtx.Err() != nil {
		return nil, fmt.Errorf("pull image %s: image service is not running: %w", req.ref, errdefs.ErrUnavailable)
	}
	key := req.key()
	if p := s.pulls[key]; p != nil {
		p.waiters++
		if p.abandon != nil {
			p.abandon.Stop()
			p.abandon = nil
		}
		return p, nil
	}
	// The pull has the caller's values (trace, identity) but not its deadline.
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.runCtx, func() { cancel(errStopping) }) //nolint:contextcheck // ends with the service, not with the caller
	p := &pulling{done: make(chan struct{}), cancel: cancel, waiters: 1}
	s.pulls[key] = p
	s.wg.Go(func() {
		defer cancel(nil)
		defer stop()
		p.img, p.err = s.run(run, req)
		s.mu.Lock()
		delete(s.pulls, key)
		if p.abandon != nil {
			p.abandon.Stop()
		}
		s.mu.Unlock()
		close(p.done)
	})
	return p, nil
}

// leave counts one waiter less and lets the pull linger when it was the last.
func (s *Service) leave(p *pulling) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.waiters--
	select {
	case <-p.done:
		return
	default:
	}
	if p.waiters == 0 {
		p.abandon = time.AfterFunc(linger, func() { p.cancel(errAbandoned) })
	}
}
