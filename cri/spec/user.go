// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxID is the highest user or group ID Kubernetes allows.
const maxID = 1<<31 - 1

// checkUser finds the faults of the user fields that need no look into the image.
func (b *builder) checkUser() {
	const field = "linux.security_context."
	sc := b.security()
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		b.faults.invalid(field+"run_as_username", "set together with run_as_user")
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
		b.faults.invalid(field+"run_as_group", "set without run_as_user or run_as_username")
	}
	b.checkID(field+"run_as_user", sc.GetRunAsUser())
	b.checkID(field+"run_as_group", sc.GetRunAsGroup())
	for i, gid := range sc.GetSupplementalGroups() {
		if gid < 0 || gid > maxID {
			b.faults.invalid(fmt.Sprintf(field+"supplemental_groups[%d]", i), "%d is not between 0 and %d", gid, maxID)
		}
	}
	if _, ok := enumName(runtimeapi.SupplementalGroupsPolicy_name, int32(sc.GetSupplementalGroupsPolicy())); !ok {
		b.faults.invalid(field+"supplemental_groups_policy", "unknown value %d", int32(sc.GetSupplementalGroupsPolicy()))
	}
}

func (b *builder) checkID(field string, id *runtimeapi.Int64Value) {
	if id != nil && (id.GetValue() < 0 || id.GetValue() > maxID) {
		b.faults.invalid(field, "%d is not between 0 and %d", id.GetValue(), maxID)
	}
}

// user resolves who the process runs as. The group of a user without run_as_group is the one /etc/passwd gives it, 0 for an ID
// that is not there. The primary group is always among the supplementary ones (CVE-2022-36109).
func (b *builder) user() error {
	sc := b.security()
	who, group := b.wanted()
	db := accounts{root: b.in.Image.Rootfs}
	u, err := db.user(who)
	if err != nil {
		return err
	}
	if u.gid, err = db.group(group, u.gid); err != nil {
		return err
	}
	groups := []uint32{u.gid}
	for _, gid := range sc.GetSupplementalGroups() {
		groups = append(groups, uint32(gid)) //nolint:gosec // checkUser bounded it
	}
	if sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Merge {
		more, err := db.memberOf(u.name)
		if err != nil {
			return err
		}
		groups = append(groups, more...)
	}
	slices.Sort(groups)
	groups = slices.Compact(groups)
	if err := b.ids.covers(u.uid, groups); err != nil {
		return err
	}
	b.spec.Process.User.UID, b.spec.Process.User.GID = u.uid, u.gid
	b.spec.Process.User.AdditionalGids = groups
	b.out.User = &runtimeapi.LinuxContainerUser{Uid: int64(u.uid), Gid: int64(u.gid)}
	for _, gid := range groups {
		b.out.User.SupplementalGroups = append(b.out.User.SupplementalGroups, int64(gid))
	}
	return nil
}

// wanted is the user and the group (which may be empty) as names or numbers, by precedence.
func (b *builder) wanted() (who, group string) {
	sc := b.security()
	switch {
	case sc.GetRunAsUsername() != "":
		who = sc.GetRunAsUsername()
	case sc.GetRunAsUser() != nil:
		who = strconv.FormatInt(sc.GetRunAsUser().GetValue(), 10)
	default:
		who, group, _ = strings.Cut(b.in.Image.Config.User, ":")
		if who == "" {
			who = "0"
		}
		return who, group
	}
	if sc.GetRunAsGroup() != nil {
		group = strconv.FormatInt(sc.GetRunAsGroup().GetValue(), 10)
	}
	return who, group
}

// account is an entry of /etc/passwd; name is empty for an ID without one.
type account struct {
	name     string
	uid, gid uint32
}

// user finds a user by name, or by number when it is one.
func (db *accounts) user(who string) (account, error) {
	id, numeric, err := number(who)
	if err != nil {
		return account{}, fmt.Errorf("user %q: %w", who, err)
	}
	entries, err := db.passwd()
	if err != nil {
		return account{}, err
	}
	for _, e := range entries {
		if e.name == who || numeric && e.uid == id {
			return e, nil
		}
	}
	if !numeric {
		return account{}, fmt.Errorf("user %q: not in the image's /etc/passwd: %w", who, errdefs.ErrInvalidArgument)
	}
	return account{uid: id}, nil
}

// group finds a group by name or number; an empty one is the fallback.
func (db *accounts) group(which string, fallback uint32) (uint32, error) {
	if which == "" {
		return fallback, nil
	}
	id, numeric, err := number(which)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", which, err)
	}
	if numeric {
		return id, nil
	}
	entries, err := db.groups()
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if e.name == which {
			return e.gid, nil
		}
	}
	return 0, fmt.Errorf("group %q: not in the image's /etc/group: %w", which, errdefs.ErrInvalidArgument)
}

// memberOf lists the groups that name a user as a member.
func (db *accounts) memberOf(name string) ([]uint32, error) {
	if name == "" {
		return nil, nil
	}
	entries, err := db.groups()
	if err != nil {
		return nil, err
	}
	var out []uint32
	for _, e := range entries {
		if slices.Contains(e.members, name) {
			out = append(out, e.gid)
		}
	}
	return out, nil
}

// number parses an ID. All digits (or a sign) make it numeric; then it has to be in range.
func number(s string) (id uint32, numeric bool, err error) {
	n, perr := strconv.ParseInt(s, 10, 64)
	if perr != nil {
		if strings.Trim(s, "0123456789") != "" {
			return 0, false, nil
		}
		n = -1
	}
	if n < 0 || n > maxID {
		return 0, true, fmt.Errorf("not between 0 and %d: %w", maxID, errdefs.ErrInvalidArgument)
	}
	return uint32(n), true, nil
}
