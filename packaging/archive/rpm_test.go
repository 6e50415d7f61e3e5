// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func someRPM() RPM {
	return RPM{
		Name: "tool", Version: "1.0", Release: "0.git1", Architecture: "x86_64", Packager: "A <a@b.c>", Licence: "Apache-2.0",
		Recommends: []string{"runc >= 1.1"}, Summary: "a tool", Description: "first\n\nthird", Configs: []string{"/etc/tool/config.yaml"},
		PostInstall: "exit 0\n", PreRemove: "echo bye\n", Files: someFiles(), Time: time.Unix(1700000000, 0),
	}
}

// rpm itself says whether it is a package.
func TestRPM(t *testing.T) {
	data, err := someRPM().Write()
	if err != nil {
		t.Fatal(err)
	}
	again, err := someRPM().Write()
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same package twice differs: %v", err)
	}
	path := filepath.Join(t.TempDir(), "tool.rpm")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	rpm := func(args ...string) string {
		t.Helper()
		args = append([]string{"--dbpath", t.TempDir()}, args...)
		text, err := exec.CommandContext(t.Context(), "rpm", append(args, path)...).CombinedOutput()
		if err != nil {
			t.Fatalf("rpm %v: %v\n%s", args, err, text)
		}
		return string(text)
	}
	if out := rpm("--checksig"); !strings.Contains(out, "digests OK") {
		t.Errorf("checksums: %s", out)
	}
	for query, want := range map[string]string{
		"%{NVRA}":                         "tool-1.0-0.git1.x86_64",
		"%{SUMMARY}|%{LICENSE}":           "a tool|Apache-2.0",
		"%{RECOMMENDS} %{RECOMMENDNEVRS}": "runc runc >= 1.1",
		"%{POSTIN}%{PREUN}":               "exit 0\necho bye\n",
		"[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEFLAGS:fflags}\n]": "/etc/tool/config.yaml -rw-r--r-- root cn\n/usr/bin/tool -rwxr-xr-x root \n",
	} {
		if got := rpm("-qp", "--queryformat", query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	out := t.TempDir()
	// rpm2cpio exits with 1 although all is there: the size that rpmpack tells is that of the files, without cpio's headers.
	unpack := "{ rpm2cpio " + path + " || true; } >" + out + "/x; cd " + out + "; busybox cpio -idm <x"
	if text, err := exec.CommandContext(t.Context(), "sh", "-ec", unpack).CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v\n%s", err, text)
	}
	if content, err := os.ReadFile(filepath.Join(out, "etc/tool/config.yaml")); err != nil || string(content) != "a: b\n" {
		t.Errorf("the configuration is %q, %v", content, err)
	}
}

func TestRPMFaults(t *testing.T) {
	r := someRPM()
	r.Version, r.Release, r.Summary, r.Configs = "1.0-rc1", "", "", []string{"/etc/none"}
	r.Files = append(r.Files, File{Path: "relative"})
	_, err := r.Write()
	if err == nil {
		t.Fatal("a faulty package was written")
	}
	for _, want := range []string{`version "1.0-rc1"`, `release ""`, "summary", "/etc/none: is not among the files", `"relative": not a clean absolute path`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
