// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestProgramMappings(t *testing.T) {
	smaps := strings.Join([]string{
		"00400000-01000000 r-xp 00000000 00:1f 77    /bin/na", "Rss:  100 kB", "Anonymous:             0 kB",
		"01000000-02000000 r--p 00c00000 00:1f 77    /bin/na", "Rss:  100 kB", "Anonymous:             4 kB", // a breakpoint
		"02000000-03000000 rw-p 01c00000 00:1f 77    /bin/na", "Rss:  100 kB", "Anonymous:             0 kB",
		"03000000-04000000 r--p 00000000 00:1f 78    /bin/other", "Rss:  100 kB", "Anonymous:             0 kB",
		"04000000-05000000 r--p 00000000 00:00 0", "Rss:  100 kB", "Anonymous:             0 kB",
	}, "\n")
	if got, want := programMappings([]byte(smaps), "/bin/na"), []mapping{{0x400000, 0x1000000}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// The program goes on without its pages: this test's code is among them.
func TestReleaseProgram(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(programMappings(smaps, exe)) == 0 {
		t.Fatal("the program has no mapping of its own text")
	}
	for range 3 {
		if err := releaseProgram(); err != nil {
			t.Fatal(err)
		}
	}
}
