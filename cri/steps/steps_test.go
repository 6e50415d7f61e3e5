// SPDX-License-Identifier: Apache-2.0

package steps_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/nodeagent/nodeagent/cri/steps"
)

var errInjected = errors.New("injected")

// table returns three steps that write what they do into log.
func table(log *[]string, failDo, failUndo string, after func(name string)) []steps.Step {
	var t []steps.Step
	for _, n := range []string{"a", "b", "c"} {
		t = append(t, steps.Step{
			Name: n,
			Do: func(context.Context) error {
				*log = append(*log, "do "+n)
				if n == failDo {
					return errInjected
				}
				if after != nil {
					after(n)
				}
				return nil
			},
			Undo: func(ctx context.Context) error {
				*log = append(*log, "undo "+n)
				if n == failUndo {
					return errInjected
				}
				return ctx.Err()
			},
		})
	}
	return t
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name, failDo, failUndo, cancelAfter string
		want                                []string
		undoFails                           bool
	}{
		{name: "all", want: []string{"do a", "do b", "do c"}},
		{name: "first fails", failDo: "a", want: []string{"do a", "undo a"}},
		{name: "last fails", failDo: "c", want: []string{"do a", "do b", "do c", "undo c", "undo b", "undo a"}},
		{name: "undo goes on", failDo: "c", failUndo: "b", undoFails: true, want: []string{"do a", "do b", "do c", "undo c", "undo b", "undo a"}},
		{name: "cancelled", cancelAfter: "a", want: []string{"do a", "undo b", "undo a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var log []string
			err := steps.Run(ctx, table(&log, tc.failDo, tc.failUndo, func(n string) {
				if n == tc.cancelAfter {
					cancel()
				}
			}))
			if !slices.Equal(log, tc.want) {
				t.Errorf("did %v, want %v", log, tc.want)
			}
			failed := tc.failDo != "" || tc.cancelAfter != ""
			if (err != nil) != failed {
				t.Fatalf("error %v, want one: %v", err, failed)
			}
			var se *steps.Error
			if failed && (!errors.As(err, &se) || (se.Undo != nil) != tc.undoFails) {
				t.Errorf("error %#v", err)
			}
			if tc.failDo != "" && !errors.Is(err, errInjected) {
				t.Errorf("%v does not wrap its cause", err)
			}
		})
	}
}
