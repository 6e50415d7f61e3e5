// SPDX-License-Identifier: Apache-2.0

package flight_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cri/flight"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errInjected = errors.New("injected")

func TestRetryJoins(t *testing.T) {
	g := flight.NewGroup[int](time.Minute)
	defer g.Close()
	var runs atomic.Int32
	entered, release := make(chan struct{}), make(chan struct{})
	fn := func(ctx context.Context) (int, error) {
		runs.Add(1)
		close(entered)
		<-release
		return 7, ctx.Err()
	}
	first, giveUp := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, err := g.Do(first, "k", fn)
		errs <- err
	}()
	<-entered
	giveUp()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatalf("first caller got %v", err)
	}
	refuse := func(any) error { return errInjected }
	if _, err := g.DoSame(t.Context(), "k", nil, refuse, fn); !errors.Is(err, errInjected) {
		t.Errorf("a different request joined: %v", err)
	}
	var wg sync.WaitGroup
	joining := make(chan struct{})
	wg.Go(func() {
		join := func(any) error { close(joining); return nil }
		if v, err := g.DoSame(t.Context(), "k", nil, join, fn); v != 7 || err != nil {
			t.Errorf("retry got %d, %v", v, err)
		}
	})
	<-joining
	close(release)
	wg.Wait()
	if n := runs.Load(); n != 1 {
		t.Errorf("ran %d times", n)
	}
}

func TestPanicReachesCallers(t *testing.T) {
	g := flight.NewGroup[int](time.Minute)
	defer g.Close()
	_, err := g.Do(t.Context(), "k", func(context.Context) (int, error) {
		letters := []int{len(t.Name())}
		return letters[letters[0]], nil
	})
	if err == nil {
		t.Error("no error")
	}
}

func TestCloseCancels(t *testing.T) {
	g := flight.NewGroup[int](time.Minute)
	entered := make(chan struct{})
	errs := make(chan error, 1)
	go func() {
		_, err := g.Do(t.Context(), "k", func(ctx context.Context) (int, error) {
			close(entered)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		errs <- err
	}()
	<-entered
	g.Close()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := g.Do(t.Context(), "k", nil); err == nil {
		t.Error("a closed group ran a call")
	}
}

func TestLocks(t *testing.T) {
	l := flight.NewLocks()
	unlock, err := l.Lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting ended with %v", err)
	}
	unlock()
	if unlock, err = l.Lock(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	unlock()
}
