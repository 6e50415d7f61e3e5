// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// TestDefaultAppArmorIsLoaded: on a host with AppArmor every container is confined, unless it asks for something else,
// and nobody but the runtime loads that profile.
func TestDefaultAppArmorIsLoaded(t *testing.T) {
	const list = "/sys/kernel/security/apparmor/profiles"
	for name, tt := range map[string]struct {
		loaded string
		want   []string
	}{
		"fresh boot":    {"lsb_release (enforce)\n", []string{spec.AppArmorDefault}},
		"another's":     {spec.AppArmorDefault + "2 (enforce)\n", []string{spec.AppArmorDefault}},
		"there already": {spec.AppArmorDefault + " (enforce)\n", nil},
	} {
		in, sys := fixture()
		in.Host.AppArmor, sys.Files[list] = true, tt.loaded
		out, err := spec.Build(in)
		if err != nil || out.Spec.Process.ApparmorProfile != spec.AppArmorDefault || !slices.Equal(sys.Profiles, tt.want) {
			t.Errorf("%s: %v, loaded %v, want %v", name, err, sys.Profiles, tt.want)
		}
	}
	in, sys := fixture()
	in.Host.AppArmor, sys.Files[list] = true, ""
	sys.FailNext("apparmor", errors.New("syntax"))
	if _, err := spec.Build(in); err == nil || !strings.Contains(err.Error(), "syntax") {
		t.Errorf("a profile that cannot be loaded: %v", err)
	}
}

// TestRestoreAppArmor: only the default profile is anyone's to load, and only when it is not there.
func TestRestoreAppArmor(t *testing.T) {
	const list = "/sys/kernel/security/apparmor/profiles"
	for name, tt := range map[string]struct {
		profile, loaded string
		want            bool
	}{
		"unloaded":      {spec.AppArmorDefault, "lsb_release (enforce)\n", true},
		"loaded":        {spec.AppArmorDefault, spec.AppArmorDefault + " (enforce)\n", false},
		"a person's":    {"mine", "", false},
		"not confining": {"", "", false},
	} {
		_, sys := fixture()
		sys.Files[list] = tt.loaded
		if got, err := spec.RestoreAppArmor(sys, tt.profile); got != tt.want || err != nil || (len(sys.Profiles) > 0) != tt.want {
			t.Errorf("%s: %t, %v, loaded %v", name, got, err, sys.Profiles)
		}
	}
	_, sys := fixture()
	sys.Files[list] = ""
	sys.FailNext("apparmor", errors.New("syntax"))
	if got, err := spec.RestoreAppArmor(sys, spec.AppArmorDefault); got || err == nil {
		t.Errorf("a profile that cannot be loaded: %t, %v", got, err)
	}
}
