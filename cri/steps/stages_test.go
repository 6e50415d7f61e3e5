// SPDX-License-Identifier: Apache-2.0

package steps_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nodeagent/nodeagent/cri/steps"
)

// TestStages times a table whose second step is slow.
func TestStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		var log bytes.Buffer
		s := &steps.Stages{
			Record: func(call, stage string, took time.Duration) {
				got = append(got, call+"/"+stage+"/"+took.String())
			},
			Log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		wait := func(d time.Duration) func(context.Context) error {
			return func(context.Context) error {
				<-time.After(d)
				return nil
			}
		}
		run := func(second time.Duration) {
			ctx, end := s.Time(t.Context(), "Run", "x")
			defer end()
			if err := steps.Run(ctx, []steps.Step{{Name: "one", Do: wait(time.Millisecond)}, {Name: "two", Do: wait(second)}}); err != nil {
				t.Error(err)
			}
		}
		run(time.Microsecond)
		if log.Len() > 0 {
			t.Errorf("a quick call is logged: %s", &log)
		}
		run(steps.Slow)
		want := []string{"Run/one/1ms", "Run/two/1µs", "Run/one/1ms", "Run/two/1s"}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if line := log.String(); !strings.Contains(line, "call=Run id=x took=1.001s stage=two stage_took=1s") {
			t.Errorf("%q", line)
		}
	})
	var none *steps.Stages
	ctx, end := none.Time(t.Context(), "x", "y")
	steps.Stage(ctx, "z")
	end()
}
