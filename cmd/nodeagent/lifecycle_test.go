// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPartsStartInOrderAndStopInReverse(t *testing.T) {
	boom := errors.New("boom")
	tests := []struct {
		name              string
		failStart         string
		failStop          string
		want              []string
		wantStart, wantIn string
	}{
		{"all well", "", "", []string{"+a", "+b", "+c", "-c", "-b", "-a"}, "", ""},
		{"second fails", "b", "", []string{"+a", "-a"}, "start b: boom", ""},
		{"stop goes on", "", "b", []string{"+a", "+b", "+c", "-c", "-a"}, "", "stop b: boom"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			var parts []part
			for _, n := range []string{"a", "b", "c"} {
				parts = append(parts, part{
					name: n,
					start: func(context.Context) error {
						if n == tt.failStart {
							return boom
						}
						got = append(got, "+"+n)
						return nil
					},
					stop: func(context.Context) error {
						if n == tt.failStop {
							return boom
						}
						got = append(got, "-"+n)
						return nil
					},
				})
			}
			log := slog.New(slog.DiscardHandler)
			err := startAll(t.Context(), log, parts, time.Minute)
			if tt.wantStart != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantStart) || !errors.Is(err, boom) {
					t.Errorf("start: %v, want %q", err, tt.wantStart)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				err = stopAll(t.Context(), log, parts, time.Minute)
				if (err == nil) != (tt.wantIn == "") || (err != nil && !strings.Contains(err.Error(), tt.wantIn)) {
					t.Errorf("stop: %v, want %q", err, tt.wantIn)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("order %v, want %v", got, tt.want)
			}
		})
	}
}

func TestStopAllIgnoresACancelledContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var seen error
	parts := []part{{name: "a", stop: func(ctx context.Context) error { seen = ctx.Err(); return nil }}}
	if err := stopAll(ctx, slog.New(slog.DiscardHandler), parts, time.Minute); err != nil {
		t.Fatal(err)
	}
	if seen != nil {
		t.Errorf("stop ran on a dead context: %v", seen)
	}
}
