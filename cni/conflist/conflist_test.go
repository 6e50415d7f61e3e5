// SPDX-License-Identifier: Apache-2.0

package conflist_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/nodeagent/nodeagent/cni/conflist"
)

func TestWriteIsReadByLibcniAndWritesOnce(t *testing.T) {
	dir := t.TempDir()
	c := conflist.Config{
		Enabled: true, Path: filepath.Join(dir, "net.d", "05-nodeagent.conflist"),
		Chained: []map[string]any{{"type": "tuning", "sysctl": map[string]string{"net.core.somaxconn": "500"}}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		changed, err := conflist.Write(c, "/run/x/api.sock", "/run/x/queue")
		if err != nil || changed != want {
			t.Errorf("Write %d = %v, %v, want %v", i, changed, err, want)
		}
	}
	files, err := libcni.ConfFiles(filepath.Dir(c.Path), []string{".conflist", ".conf", ".json", ".tmp"})
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	checkList(t, c.Path)
	info, err := os.Stat(c.Path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for range 2 {
		if err := conflist.Remove(c); err != nil {
			t.Error(err)
		}
	}
}

// checkList reads the file as a runtime does.
func checkList(t *testing.T, path string) {
	t.Helper()
	list, err := libcni.ConfListFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" || list.Name != "nodeagent" || len(list.Plugins) != 2 {
		t.Errorf("list %+v", list)
	}
	if p := list.Plugins[0].Network; p.Type != "nodeagent-cni" || !p.Capabilities["portMappings"] {
		t.Errorf("plugin %+v", p)
	}
}

func TestWriteReplacesWhatDiffers(t *testing.T) {
	c := conflist.Config{Path: filepath.Join(t.TempDir(), "a.conflist")}
	if err := os.WriteFile(c.Path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := conflist.Write(c, "/a", "/b"); err != nil || !changed {
		t.Errorf("Write = %v, %v", changed, err)
	}
	if _, err := libcni.ConfListFromFile(c.Path); err != nil {
		t.Error(err)
	}
}

func TestValidateNamesEveryFault(t *testing.T) {
	err := conflist.Config{Path: "x.json", Chained: []map[string]any{{}, {"type": "nodeagent-cni"}}}.Validate()
	for _, want := range []string{"path: ", "chained[0].type: ", "chained[1].type: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
