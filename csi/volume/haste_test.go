// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// The kernel's switch is on only while somebody freezes, stays as a person set it,
// and is turned off after a daemon that was killed with it on.
func TestHaste(t *testing.T) {
	dir := t.TempDir()
	db := must[*stateStore](t)(testState(dir))
	defer func() { _ = db.db.Close() }()
	knob := filepath.Join(dir, "rcu_expedited")
	set := func(v string) {
		t.Helper()
		if err := os.WriteFile(knob, []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(v string, recorded bool) {
		t.Helper()
		b, err := os.ReadFile(knob)
		if err != nil || string(b) != v || db.hurried() != recorded {
			t.Fatalf("the switch is %q, %v, recorded %t; want %q, %t", b, err, db.hurried(), v, recorded)
		}
	}
	ctx := context.Background()
	h := &haste{knob: knob, state: db, log: discard()}

	set("0\n")
	h.begin(ctx)
	h.begin(ctx)
	want("1", true)
	h.end(ctx)
	want("1", true)
	h.end(ctx)
	want("0", false)

	set("1\n") // a person's
	h.begin(ctx)
	h.end(ctx)
	want("1\n", false)

	set("0\n")
	h.begin(ctx)
	h = &haste{knob: knob, state: db, log: discard()} // killed
	h.recover(ctx)
	want("0", false)
	set("1\n")
	h.recover(ctx)
	want("1\n", false)

	if err := os.Remove(knob); err != nil { // a kernel without it
		t.Fatal(err)
	}
	h.begin(ctx)
	h.end(ctx)
	if db.hurried() {
		t.Error("recorded a switch that is not there")
	}
}

func testState(dir string) (*stateStore, error) {
	db, err := openDB(dir)
	if err != nil {
		return nil, err
	}
	s := newStateStore(db)
	return s, s.open()
}
