// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"testing"
	"time"
)

func TestParseDiskStat(t *testing.T) {
	got, err := parseDiskStat("  10 1 80 5  20 2 160 40  0 45 45  3 0 24 1  7 9\n")
	want := DiskStat{
		Read: DiskIO{10, 80 * 512, 5 * time.Millisecond}, Write: DiskIO{20, 160 * 512, 40 * time.Millisecond},
		Flush: DiskIO{Count: 7, Time: 9 * time.Millisecond},
	}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	// Before Linux 5.5 there are no flushes; a line that is none is an error.
	if got, err := parseDiskStat("1 0 8 1 1 0 8 1 0 1 1"); err != nil || got.Flush.Count != 0 || got.Write.Count != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "1 2 3", "a b c d e f g h"} {
		if _, err := parseDiskStat(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}
