// SPDX-License-Identifier: Apache-2.0

package task

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReadFacts(t *testing.T) {
	const own = `"linux":{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"user","path":"/ns/user"}]}`
	for name, tt := range map[string]struct {
		config string
		want   facts
	}{
		"own":            {`{` + own + `}`, facts{userns: "/ns/user"}},
		"poststart hook": {`{` + own + `,"hooks":{"poststart":[{"path":"/h"}]}}`, facts{userns: "/ns/user", hooked: true}},
		"early hook":     {`{` + own + `,"hooks":{"createRuntime":[{"path":"/h"}],"poststart":[]}}`, facts{userns: "/ns/user"}},
		"the host's":     {`{"linux":{"namespaces":[{"type":"network"}]}}`, facts{sharedPID: true}},
		"others'":        {`{"linux":{"namespaces":[{"type":"mount","path":"/ns/mnt"},{"type":"pid","path":"/ns/pid"}]}}`, facts{sharedPID: true}},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(tt.config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readFacts(dir); err != nil || got != tt.want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}
