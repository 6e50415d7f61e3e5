// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// resyncInterval bounds how long a lost event can keep the index wrong.
const resyncInterval = time.Minute

// Start fills the index from containerd and keeps it right until Stop.
func (s *Service) Start(ctx context.Context) error {
	if s.boot == "" {
		boot, err := bootID()
		if err != nil {
			return err
		}
		s.boot = boot
	}
	if err := s.heal(ctx); err != nil {
		// The kubelet may ask for the others; these are tried again.
		s.log.ErrorContext(ctx, "images could not be checked", "err", err)
	}
	if err := s.resync(ctx); err != nil {
		return fmt.Errorf("read images: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.mu.Lock()
	s.runCtx = run
	s.mu.Unlock()
	s.wg.Go(func() { s.watch(run) })
	s.wg.Go(func() { s.measureLoop(run) })
	s.wg.Go(func() { s.syncLoop(run) })
	return nil
}

// Stop ends the background work and waits for it. Pulls that run are cancelled
// and continue where they were when they are asked for again.
func (s *Service) Stop(ctx context.Context) error {
	if s.cancel == nil {
		return nil
	}
	s.cancel()
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop image service: %w", ctx.Err())
	}
}

// watch follows containerd's image events and reads everything anew after a
// broken connection, and from time to time.
func (s *Service) watch(ctx context.Context) {
	changes := make(chan string, 64)
	s.wg.Go(func() { s.subscribe(ctx, changes) })
	tick := time.NewTicker(resyncInterval)
	defer tick.Stop()
	var again healing
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err = errors.Join(again.heal(ctx, s, now), s.resync(ctx), s.sweep(ctx))
		case name := <-changes:
			if name == "" {
				err = s.resync(ctx)
			} else {
				err = s.refresh(ctx, name)
			}
		}
		if err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "image index may be out of date", "err", err)
		}
	}
}

// subscribe sends the names of changed records, and "" when all may have
// changed. It connects again, ever more slowly, for as long as ctx lives.
func (s *Service) subscribe(ctx context.Context, changes chan<- string) {
	send := func(name string) {
		select {
		case changes <- name:
		case <-ctx.Done():
		}
	}
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, resyncInterval) {
		err := s.deps.Records.WatchImages(ctx, func() {
			pause = time.Second
			send("")
		}, send)
		if ctx.Err() != nil {
			return
		}
		s.log.DebugContext(ctx, "image events interrupted", "err", err, "retry_in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// resync makes the index agree with containerd.
func (s *Service) resync(ctx context.Context) error {
	records, err := s.deps.Records.ImageRecords(ctx)
	if err != nil {
		return err
	}
	present := make(map[string]bool, len(records))
	for _, rec := range records {
		ok, err := s.learn(ctx, rec)
		if err != nil {
			return err
		}
		present[rec.Name] = ok
	}
	s.index.retain(present)
	return nil
}

// refresh makes the index agree with one record.
func (s *Service) refresh(ctx context.Context, name string) error {
	rec, err := s.deps.Records.ImageRecord(ctx, name)
	if errdefs.IsNotFound(err) {
		s.index.drop(name)
		return nil
	}
	if err != nil {
		return err
	}
	ok, err := s.learn(ctx, rec)
	if err == nil && !ok {
		s.index.drop(name)
	}
	return err
}

// learn puts a record into the index; false when its content is not there, as
// while somebody pulls it, or is none for this machine.
func (s *Service) learn(ctx context.Context, rec containerd.ImageRecord) (bool, error) {
	info := s.index.info(rec.Target.Digest)
	if info == nil {
		got, err := s.deps.Records.InspectImage(ctx, rec.Target)
		if errdefs.IsNotFound(err) {
			s.log.DebugContext(ctx, "image is not complete", "image", rec.Name, "err", err)
			return false, nil
		}
		if err != nil {
			if ctx.Err() != nil || errdefs.IsUnavailable(err) {
				return false, err
			}
			s.log.WarnContext(ctx, "image is not readable", "image", rec.Name, "err", err)
			return false, nil
		}
		info = &got
	}
	s.index.put(rec, info)
	return true, nil
}
