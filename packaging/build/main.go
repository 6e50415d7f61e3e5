// SPDX-License-Identifier: Apache-2.0

// Command build makes what is released: the Debian and RPM packages, the OCI image
// archive, the Helm chart and the plain manifests. It needs nothing but the built
// programs; the same programs and version give the same bytes.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1) //nolint:forbidigo // this is a program's main
	}
}

// release is what is made, and from what.
type release struct {
	version string // like v0.1.0-abc
	arch    string
	bin     string
	image   string
	time    time.Time
}

func run(args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	r := release{}
	flags.StringVar(&r.version, "version", "v0.0.0-devel", "version of the release")
	flags.StringVar(&r.arch, "arch", runtime.GOARCH, "architecture of the programs")
	flags.StringVar(&r.bin, "bin", "bin", "directory of the built programs")
	flags.StringVar(&r.image, "image", "ghcr.io/nodeagent/nodeagent", "name of the image")
	out := flags.String("out", "dist", "directory for what is made")
	storage := flags.String("storage", "", "make only this file: the objects of the volumes, CSIDriver and StorageClasses")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("no arguments are taken, got %q", flags.Args())
	}
	var err error
	if r.time, err = epoch(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		return err
	}
	if !strings.HasPrefix(r.version, "v") {
		return fmt.Errorf("version %q: begins with v", r.version)
	}
	if *storage != "" {
		data, err := r.storage()
		if err != nil {
			return err
		}
		return os.WriteFile(*storage, data, 0o644)
	}
	return r.write(*out)
}

// epoch is the time that all files have: SOURCE_DATE_EPOCH, or the beginning
// of time.
func epoch(s string) (time.Time, error) {
	if s == "" {
		return time.Unix(0, 0).UTC(), nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q: not a number of seconds", s)
	}
	return time.Unix(n, 0).UTC(), nil
}

// write makes everything and puts it into dir.
func (r release) write(dir string) error {
	number := strings.TrimPrefix(r.version, "v")
	rpmNumber, rpmRelease := rpmVersion(r.version)
	made := map[string]func() ([]byte, error){
		fmt.Sprintf("nodeagent-%s-%s.%s.rpm", rpmNumber, rpmRelease, rpmArch(r.arch)): r.rpm,
		fmt.Sprintf("nodeagent_%s_%s.deb", number, r.arch):                            r.deb,
		fmt.Sprintf("nodeagent-%s-%s.oci.tar", r.version, r.arch):                     r.oci,
		fmt.Sprintf("nodeagent-chart-%s.tgz", number):                                 r.chart,
		"nodeagent.yaml":     func() ([]byte, error) { return r.manifests("host") },
		"nodeagent-pod.yaml": func() ([]byte, error) { return r.manifests("pod") },
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var sums bytes.Buffer
	var names []string
	for name := range made {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		data, err := made[name]()
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), name)
		fmt.Printf("%s (%d KiB)\n", path, (len(data)+1023)/1024)
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "SHA256SUMS"), sums.Bytes(), 0o644))
}
