// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestDecodeManifest reads the files of each archive and compares objects and
// faults with its "want"; -update writes what came out.
func TestDecodeManifest(t *testing.T) {
	archives, err := filepath.Glob("testdata/manifests/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var got, want bytes.Buffer
			at := -1
			for i, f := range ar.Files {
				if f.Name == "want" {
					want.Write(f.Data)
					at = i
					continue
				}
				objects, err := decodeManifest(f.Name, f.Data)
				for _, o := range objects {
					fmt.Fprintf(&got, "%s: %s %s\n", o.where, o.kind, o.key)
				}
				if err != nil {
					fmt.Fprintln(&got, err)
				}
			}
			if *update {
				ar.Files[at].Data = got.Bytes()
				if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got.String() != want.String() {
				t.Errorf("got:\n%s\nwant:\n%s", &got, &want)
			}
		})
	}
}

var update = flag.Bool("update", false, "write what comes out into testdata")
