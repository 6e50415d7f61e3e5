// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"crypto/md5" //nolint:gosec // dpkg's md5sums are for finding changed files, not for trust
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Deb describes a Debian package.
type Deb struct {
	Name, Version, Architecture string
	Maintainer                  string
	Section                     string
	Homepage                    string
	// Depends, Recommends and Suggests are lists as in a control file.
	Depends, Recommends, Suggests string
	// Summary is one line, Description more of them.
	Summary, Description string
	// Conffiles are files that a person may change.
	Conffiles []string
	// Scripts are postinst, prerm and so on, by name.
	Scripts map[string]string
	Files   []File
	// Time of the release.
	Time time.Time
}

// Write gives the package's bytes.
func (d Deb) Write() ([]byte, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	control, err := d.controlTar()
	if err != nil {
		return nil, err
	}
	data, err := tarball(d.Files, d.Time, true)
	if err != nil {
		return nil, err
	}
	if data, err = compress(data); err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	buf.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", control}, {"data.tar.gz", data}} {
		fmt.Fprintf(&buf, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, d.Time.Unix(), 0, 0, "100644", len(m.data))
		buf.Write(m.data)
		if len(m.data)%2 == 1 {
			buf.WriteByte('\n')
		}
	}
	return buf.Bytes(), nil
}

func (d Deb) validate() error {
	var faults []error
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`).MatchString(d.Name) {
		faults = append(faults, fmt.Errorf("package name %q: not one that dpkg takes", d.Name))
	}
	if !regexp.MustCompile(`^[0-9][A-Za-z0-9.+~-]*$`).MatchString(d.Version) {
		faults = append(faults, fmt.Errorf("package version %q: not one that dpkg takes", d.Version))
	}
	if d.Architecture == "" || d.Maintainer == "" || d.Summary == "" {
		faults = append(faults, errors.New("package: architecture, maintainer and summary are needed"))
	}
	for _, c := range d.Conffiles {
		if !slices.ContainsFunc(d.Files, func(f File) bool { return f.Path == c }) {
			faults = append(faults, fmt.Errorf("conffile %s: is not among the files", c))
		}
	}
	return errors.Join(faults...)
}

func (d Deb) controlTar() ([]byte, error) {
	files := []File{{Path: "/control", Data: []byte(d.control())}}
	var sums strings.Builder
	for _, f := range slices.SortedFunc(slices.Values(d.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) }) {
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(f.Data), strings.TrimPrefix(f.Path, "/")) //nolint:gosec // see above
	}
	files = append(files, File{Path: "/md5sums", Data: []byte(sums.String())})
	if len(d.Conffiles) > 0 {
		files = append(files, File{Path: "/conffiles", Data: []byte(strings.Join(d.Conffiles, "\n") + "\n")})
	}
	for name, script := range d.Scripts {
		files = append(files, File{Path: "/" + name, Mode: 0o755, Data: []byte(script)})
	}
	data, err := tarball(files, d.Time, true)
	if err != nil {
		return nil, err
	}
	return compress(data)
}

func (d Deb) control() string {
	size := 0
	for _, f := range d.Files {
		size += len(f.Data)
	}
	var b strings.Builder
	for _, field := range []struct{ name, value string }{
		{"Package", d.Name},
		{"Version", d.Version},
		{"Architecture", d.Architecture},
		{"Maintainer", d.Maintainer},
		{"Installed-Size", fmt.Sprint((size + 1023) / 1024)},
		{"Depends", d.Depends},
		{"Recommends", d.Recommends},
		{"Suggests", d.Suggests},
		{"Section", d.Section},
		{"Priority", "optional"},
		{"Homepage", d.Homepage},
		{"Description", d.Summary},
	} {
		if field.value != "" {
			fmt.Fprintf(&b, "%s: %s\n", field.name, field.value)
		}
	}
	for line := range strings.Lines(d.Description) {
		if line = strings.TrimRight(line, "\n"); line == "" {
			line = "."
		}
		fmt.Fprintf(&b, " %s\n", line)
	}
	return b.String()
}
