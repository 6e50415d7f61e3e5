// SPDX-License-Identifier: Apache-2.0

// Package stepstest cuts tables of steps short: a table that fails, is cancelled or
// dies with its process at any step leaves the world as it was before.
package stepstest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/nodeagent/nodeagent/cri/steps"
)

// ErrInjected is the failure of a step that has done its work.
var ErrInjected = errors.New("injected")

// World is what a table changes.
type World struct {
	// Build records the intent and returns the table, and what is done after it failed.
	Build func() (table []steps.Step, abandon func(cause error) error)
	// Restart is what a new process does before its first call, after a kill -9.
	Restart func()
	// Picture is all that can be left of it.
	Picture func() []string
}

// CutShort cuts the table short at each step in each way.
func CutShort(t *testing.T, w World) {
	t.Helper()
	table, _ := w.Build()
	w.Restart() // forgets the record that was made for counting
	before := w.Picture()
	for i := range table {
		t.Run(fmt.Sprintf("fail at %d", i), func(t *testing.T) {
			w.cut(t, i, ErrInjected)
			Same(t, before, w.Picture())
		})
		t.Run(fmt.Sprintf("cancel at %d", i), func(t *testing.T) {
			w.cut(t, i, context.Canceled)
			Same(t, before, w.Picture())
		})
		t.Run(fmt.Sprintf("crash after %d", i), func(t *testing.T) {
			if i == len(table)-1 {
				return // committed: nothing is cut short
			}
			begun, _ := w.Build()
			for _, s := range begun[:i+1] {
				if err := s.Do(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			w.Restart()
			Same(t, before, w.Picture())
		})
	}
}

// cut runs a table whose step i does its work and fails, or finds its call cancelled.
func (w World) cut(t *testing.T, i int, cause error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	table, abandon := w.Build()
	do := table[i].Do
	table[i].Do = func(ctx context.Context) error {
		if errors.Is(cause, context.Canceled) {
			cancel()
		}
		return errors.Join(do(ctx), cause)
	}
	err := steps.Run(ctx, table)
	if !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if err := abandon(err); err != nil {
		t.Fatal(err)
	}
}

// Same compares two pictures.
func Same(t *testing.T, before, after []string) {
	t.Helper()
	if !slices.Equal(before, after) {
		t.Errorf("the world changed\nfrom %v\nto   %v", before, after)
	}
}
