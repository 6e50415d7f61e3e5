// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"testing"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

// steps of the two verbs, in order, as failpoint sees them.
var (
	attachStepNames = []string{"reserve", "link", "endpoint", "enable", "commit"}
	detachStepNames = []string{"mark", "endpoint", "retire", "release"}
)

var errInjected = errors.New("injected")

// at returns a failpoint that calls f before one step.
func at(step string, f func(context.Context) error) func(context.Context, string) error {
	return func(ctx context.Context, s string) error {
		if s == step {
			return f(ctx)
		}
		return nil
	}
}

func noFailpoint(context.Context, string) error { return nil }

// TestRootAttachFailsAtEachStep fails at each step: the world is as before, and
// the next try succeeds.
func TestRootAttachFailsAtEachStep(t *testing.T) {
	for _, step := range attachStepNames {
		t.Run(step, func(t *testing.T) {
			l := newLab(t, nil)
			l.attach("other")
			before := l.world()
			pod := netnstest.New(t)
			req := Request{Key: Key{"pod", "eth0"}, NetNS: pod}
			l.net.failpoint = at(step, func(context.Context) error { return errInjected })
			if _, err := l.net.Attach(t.Context(), req); !errors.Is(err, errInjected) {
				t.Fatalf("Attach = %v, want the injected error", err)
			}
			l.net.failpoint = noFailpoint
			if after := l.world(); after != before {
				t.Errorf("before %s\n after %s", before, after)
			}
			if _, err := l.net.Attach(t.Context(), req); err != nil {
				t.Errorf("the next try: %v", err)
			}
		})
	}
}

// TestRootAttachCancelledAtEachStep cancels the caller's context at each step.
func TestRootAttachCancelledAtEachStep(t *testing.T) {
	for _, step := range attachStepNames {
		t.Run(step, func(t *testing.T) {
			l := newLab(t, nil)
			before := l.world()
			ctx, cancel := context.WithCancel(t.Context())
			l.net.failpoint = at(step, func(context.Context) error { cancel(); return nil })
			_, err := l.net.Attach(ctx, Request{Key: Key{"pod", "eth0"}, NetNS: netnstest.New(t)})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("Attach = %v, want context.Canceled", err)
			}
			if after := l.world(); after != before {
				t.Errorf("before %s\n after %s", before, after)
			}
		})
	}
}

// TestRootAttachCrashesAtEachStep ends the daemon at each step: the next one
// leaves nothing of it, and keeps what was in place.
func TestRootAttachCrashesAtEachStep(t *testing.T) {
	for _, step := range attachStepNames {
		t.Run(step, func(t *testing.T) {
			l := newLab(t, nil)
			l.attach("other")
			before := l.world()
			l.net.failpoint = at(step, func(context.Context) error { return errCrash })
			pod := netnstest.New(t)
			if _, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod}); !errors.Is(err, errCrash) {
				t.Fatalf("Attach = %v, want a crash", err)
			}
			l.restart()
			if after := l.world(); after != before {
				t.Errorf("before %s\n after %s", before, after)
			}
		})
	}
}

// TestRootDetachFailsAndCrashesAtEachStep: whatever happens, the attachment is
// gone after the next try, after reconciliation or after a restart.
func TestRootDetachFailsAndCrashesAtEachStep(t *testing.T) {
	for _, step := range detachStepNames {
		for name, finish := range map[string]func(l *lab) error{
			"again":     func(l *lab) error { return l.net.Detach(context.Background(), Key{"pod", "eth0"}) },
			"reconcile": func(l *lab) error { return l.net.Reconcile(context.Background()) },
			"restart":   func(l *lab) error { l.restart(); return nil },
		} {
			if step == "mark" && name != "again" {
				continue // nothing was begun: the pod keeps its network
			}
			t.Run(step+"/"+name, func(t *testing.T) {
				l := newLab(t, nil)
				before := l.world()
				l.attach("pod")
				l.net.failpoint = at(step, func(context.Context) error { return errCrash })
				if err := l.net.Detach(t.Context(), Key{"pod", "eth0"}); !errors.Is(err, errCrash) {
					t.Fatalf("Detach = %v, want a crash", err)
				}
				l.net.failpoint = noFailpoint
				if err := finish(l); err != nil {
					t.Fatal(err)
				}
				if after := l.world(); after != before {
					t.Errorf("before %s\n after %s", before, after)
				}
			})
		}
	}
}

// TestRootUndoThatFailsIsFinishedLater: the data path refuses to delete while
// an attach is undone; the record stays until reconciliation.
func TestRootUndoThatFailsIsFinishedLater(t *testing.T) {
	l := newLab(t, nil)
	before := l.world()
	l.net.failpoint = at("enable", func(context.Context) error {
		l.dp.FailNext("delete", errInjected)
		return errInjected
	})
	if _, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: netnstest.New(t)}); err == nil {
		t.Fatal("Attach succeeded")
	}
	l.net.failpoint = noFailpoint
	if err := l.net.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
}
