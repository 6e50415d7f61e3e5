// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// maxAccounts bounds /etc/passwd and /etc/group, which the image's author writes.
const maxAccounts = 8 << 20

// accounts reads an image's users and groups, each file at most once.
type accounts struct {
	root       fs.FS
	users      []account
	groupList  []group
	haveUsers  bool
	haveGroups bool
}

type group struct {
	name    string
	gid     uint32
	members []string
}

func (db *accounts) passwd() ([]account, error) {
	if db.haveUsers {
		return db.users, nil
	}
	err := db.lines("etc/passwd", func(f []string) {
		if len(f) < 4 {
			return
		}
		uid, okUID, err1 := number(f[2])
		gid, okGID, err2 := number(f[3])
		if okUID && okGID && err1 == nil && err2 == nil {
			db.users = append(db.users, account{name: f[0], uid: uid, gid: gid})
		}
	})
	db.haveUsers = err == nil
	return db.users, err
}

func (db *accounts) groups() ([]group, error) {
	if db.haveGroups {
		return db.groupList, nil
	}
	err := db.lines("etc/group", func(f []string) {
		if len(f) < 3 {
			return
		}
		gid, ok, err := number(f[2])
		if !ok || err != nil {
			return
		}
		g := group{name: f[0], gid: gid}
		if len(f) > 3 {
			g.members = strings.Split(f[3], ",")
		}
		db.groupList = append(db.groupList, g)
	})
	db.haveGroups = err == nil
	return db.groupList, err
}

// lines calls fn with the colon-separated fields of each line. An absent file has none; malformed lines are left to fn.
func (db *accounts) lines(name string, fn func(fields []string)) error {
	if db.root == nil {
		return nil
	}
	f, err := OpenInside(db.root, name)
	if absent(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("image's /%s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("image's /%s: not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	limited := &io.LimitedReader{R: f, N: maxAccounts}
	scanner := bufio.NewScanner(limited)
	scanner.Buffer(nil, maxAccounts)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line != "" && line[0] != '#' {
			fn(strings.Split(line, ":"))
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("image's /%s: %w", name, err)
	}
	if limited.N == 0 {
		return fmt.Errorf("image's /%s: larger than %d MiB: %w", name, maxAccounts>>20, errdefs.ErrInvalidArgument)
	}
	return nil
}

func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// OpenInside opens a file of a root file system. Links are followed as the container would follow them: an absolute one
// starts at root again, and none leads out of it.
func OpenInside(root fs.FS, name string) (fs.File, error) {
	links, ok := root.(fs.ReadLinkFS)
	if !ok {
		return root.Open(name)
	}
	resolved := "."
	pending := strings.Split(name, "/")
	for hops := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			resolved = path.Dir(resolved)
			continue
		}
		next := path.Join(resolved, part)
		info, err := links.Lstat(next)
		if err != nil {
			return nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			resolved = next
			continue
		}
		if hops++; hops > 40 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		target, err := links.ReadLink(next)
		if err != nil {
			return nil, err
		}
		if path.IsAbs(target) {
			resolved = "."
		}
		pending = append(strings.Split(target, "/"), pending...)
	}
	return root.Open(resolved)
}
