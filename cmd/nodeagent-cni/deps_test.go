// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestImportsAreTheGoldenList: the program starts for every pod, so whoever
// makes it heavier does so on purpose. UPDATE_GOLDEN=1 writes the list.
func TestImportsAreTheGoldenList(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for p := range strings.Lines(string(out)) {
		// What the standard library needs inside differs by release.
		if !strings.Contains(p, "internal/") && !strings.HasPrefix(p, "internal") {
			got = append(got, p)
		}
	}
	slices.Sort(got)
	golden := filepath.Join("testdata", "deps.golden")
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.WriteFile(golden, []byte(strings.Join(got, "")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, "") != string(want) {
		t.Errorf("the program imports\n%s\nthe golden list has\n%s", strings.Join(got, ""), want)
	}
}
