// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// nriPlugins looks at the programs that the daemon starts as NRI plugins: one with a name that
// is none keeps the CRI from being ready.
func (o Options) nriPlugins(context.Context) []Finding {
	if o.NRIPlugins == "" {
		return nil
	}
	entries, err := os.ReadDir(o.path(o.NRIPlugins))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return one("nri plugins", Fail, err.Error(), "the CRI does not become ready; set cri.nri.enabled: false or mend the directory")
	}
	name := regexp.MustCompile(`^[0-9]{2}-.`)
	var out []Finding
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || e.IsDir() {
			continue
		}
		path := filepath.Join(o.NRIPlugins, e.Name())
		switch runs := info.Mode()&0o111 != 0; {
		case runs && !name.MatchString(e.Name()):
			out = append(out, Finding{
				Check: "nri plugins", Level: Fail, Detail: path + " is not named NN-NAME", Hint: "the CRI does not become ready; rename it, or take it away",
			})
		case !runs && name.MatchString(e.Name()):
			out = append(out, Finding{Check: "nri plugins", Level: Warn, Detail: path + " may not be executed", Hint: "it is not started"})
		}
	}
	return out
}
