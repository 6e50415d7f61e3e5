// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"path/filepath"
	"strings"
)

// writeBenchstat writes a file per peer in the format of Go's benchmarks, so
// that `benchstat cri-nodeagent.txt cri-containerd.txt` compares them.
func (a *Area) writeBenchstat(dir string) error {
	lines := map[string]*strings.Builder{}
	word := strings.NewReplacer(", ", "_", " ", "_", "/", "-per-")
	for _, f := range a.Figures {
		for _, p := range f.Peers {
			if lines[p] == nil {
				lines[p] = &strings.Builder{}
			}
			for _, v := range f.Values[p].Samples {
				fmt.Fprintf(lines[p], "Benchmark%s/%s/%s 1 %g %s\n",
					strings.ToUpper(a.Name[:1])+a.Name[1:], word.Replace(f.Group), word.Replace(f.Name), v, strings.ReplaceAll(f.Unit, " ", "_"))
			}
		}
	}
	for p, b := range lines {
		if err := write(filepath.Join(dir, a.Name+"-"+word.Replace(p)+".txt"), []byte(strings.TrimSuffix(b.String(), "\n"))); err != nil {
			return err
		}
	}
	return nil
}
