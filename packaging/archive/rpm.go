// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/google/rpmpack"
)

// RPM describes an RPM package.
type RPM struct {
	Name string
	// Version and Release are as RPM takes them, without a hyphen.
	Version, Release string
	// Architecture is RPM's name of it, such as x86_64.
	Architecture                       string
	Packager, URL, Licence             string
	Summary, Description               string
	Recommends, Suggests               []string
	PostInstall, PreRemove, PostRemove string
	// Configs are files that a person may change: an upgrade does not replace them.
	Configs []string
	Files   []File
	// Time of the release.
	Time time.Time
}

// Write gives the package's bytes.
func (r RPM) Write() ([]byte, error) {
	if err := r.validate(); err != nil {
		return nil, err
	}
	meta := rpmpack.RPMMetaData{
		Name: r.Name, Version: r.Version, Release: r.Release, Arch: r.Architecture, OS: "linux",
		Packager: r.Packager, URL: r.URL, Licence: r.Licence, Summary: r.Summary, Description: r.Description,
		BuildTime: r.Time, BuildHost: "localhost", Compressor: "gzip",
	}
	if err := errors.Join(relate(&meta.Recommends, r.Recommends), relate(&meta.Suggests, r.Suggests)); err != nil {
		return nil, err
	}
	pkg, err := rpmpack.NewRPM(meta)
	if err != nil {
		return nil, fmt.Errorf("begin package: %w", err)
	}
	for _, f := range r.Files {
		kind := rpmpack.GenericFile
		if slices.Contains(r.Configs, f.Path) {
			kind = rpmpack.ConfigFile | rpmpack.NoReplaceFile
		}
		pkg.AddFile(rpmpack.RPMFile{
			Name: f.Path, Body: f.Data, Mode: uint(cmp.Or(f.Mode, 0o644)), Owner: "root", Group: "root",
			MTime: uint32(r.Time.Unix()), Type: kind,
		})
	}
	pkg.AddPostin(r.PostInstall)
	pkg.AddPreun(r.PreRemove)
	pkg.AddPostun(r.PostRemove)
	var buf bytes.Buffer
	if err := pkg.Write(&buf); err != nil {
		return nil, fmt.Errorf("write package: %w", err)
	}
	return buf.Bytes(), nil
}

func relate(to *rpmpack.Relations, names []string) error {
	for _, n := range names {
		if err := to.Set(n); err != nil {
			return fmt.Errorf("relation %q: %w", n, err)
		}
	}
	return nil
}

func (r RPM) validate() error {
	var faults []error
	for what, v := range map[string]string{"version": r.Version, "release": r.Release} {
		if !regexp.MustCompile(`^[0-9][A-Za-z0-9.+~^]*$`).MatchString(v) {
			faults = append(faults, fmt.Errorf("package %s %q: not one that RPM takes", what, v))
		}
	}
	if r.Name == "" || r.Architecture == "" || r.Summary == "" || r.Licence == "" {
		faults = append(faults, errors.New("package: name, architecture, summary and licence are needed"))
	}
	for _, c := range r.Configs {
		if !slices.ContainsFunc(r.Files, func(f File) bool { return f.Path == c }) {
			faults = append(faults, fmt.Errorf("configuration %s: is not among the files", c))
		}
	}
	files := slices.SortedFunc(slices.Values(r.Files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	return errors.Join(append(faults, check(files))...)
}
