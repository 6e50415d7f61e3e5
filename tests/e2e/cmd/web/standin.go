// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// standIn does what a program of Kubernetes' test images does, and says whether it knows
// the name.
func standIn(name string) (bool, error) {
	switch name {
	case "nnp": // is it set-user-id or not?
		_, err := io.WriteString(os.Stdout, fmt.Sprintf("Effective uid: %d\n", os.Geteuid()))
		return true, err
	case "nmeter": // the only thing it is asked for: the time of day
		_, err := fmt.Println(time.Now().UTC().Format("15:04:05.000"))
		return true, err
	case "nginx":
		return true, nginx()
	case "sh":
		return true, shell()
	}
	return false, nil
}

// nginx says which process it is where tests look for it, and serves a directory.
func nginx() error {
	_ = os.WriteFile("/var/run/nginx.pid", fmt.Appendln(nil, os.Getpid()), 0o644) //nolint:gosec // the root may be read-only; others read it
	srv := &http.Server{Addr: ":80", Handler: http.FileServer(http.Dir("/www")), ReadHeaderTimeout: 10 * time.Second}
	return srv.ListenAndServe()
}

// shell becomes busybox's, whose words some tests expect; or bash where the environment has names
// that are none of a variable, which others expect to be handed on and busybox 1.35 drops.
func shell() error {
	identifier := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); !identifier.MatchString(name) {
			return unix.Exec("/bin/bash", os.Args, os.Environ())
		}
	}
	return unix.Exec("/bin/busybox", os.Args, os.Environ())
}
