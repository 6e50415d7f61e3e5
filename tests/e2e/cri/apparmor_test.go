// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func hasAppArmor() bool {
	data, err := node.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(data), "Y")
}

// profile asks for an AppArmor profile, and for the capability with which it would be missed.
func profile(kind runtimeapi.SecurityProfile_ProfileType, ref string) func(*runtimeapi.ContainerConfig) {
	return security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		s.Capabilities.AddCapabilities = []string{"SYS_ADMIN"}
	})
}

// TestNoAppArmor wants to be told when a profile cannot be enforced.
func TestNoAppArmor(t *testing.T) {
	if hasAppArmor() {
		t.Skip("this kernel has AppArmor")
	}
	p := newPod(t, nil)
	if _, _, err := p.create(profile(runtimeapi.SecurityProfile_Localhost, "not-there")); err == nil {
		t.Error("a profile is accepted that cannot be enforced")
	}
	id, _ := p.start(profile(runtimeapi.SecurityProfile_Unconfined, ""))
	p.sh(id, "true")
}

// load gives the node's kernel a profile until the test ends.
func load(t *testing.T, name, rules string) {
	t.Helper()
	file := "/tmp/" + name + ".apparmor"
	if err := node.WriteFile(file, []byte("profile "+name+" flags=(attach_disconnected,mediate_deleted) {\n"+rules+"\n}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Run(t.Context(), "apparmor_parser", "--replace", "--skip-cache", file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := node.Run(context.WithoutCancel(t.Context()), "apparmor_parser", "--remove", file); err != nil {
			t.Error(err)
		}
	})
}

// TestAppArmor wants each profile to forbid what it is there for, to a container's program and to what is run in it.
func TestAppArmor(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	load(t, "no-writes", "capability,\nfile,\nnetwork,\nsignal,\nunix,\ndeny /forbidden/** w,")
	p := newPod(t, nil)
	const current, mount = "cat /proc/self/attr/current", "mount -t tmpfs x /tmp"
	id, _ := p.start(profile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
	if got := p.sh(id, current); got != "cri-containerd.apparmor.d (enforce)" {
		t.Errorf("RuntimeDefault is %q", got)
	}
	p.fails(id, mount, "ermission denied")
	p.sh(id, "mkdir /forbidden && touch /forbidden/x && kill -0 1")

	id, _ = p.start(profile(runtimeapi.SecurityProfile_Unconfined, ""))
	if got := p.sh(id, current); got != "unconfined" {
		t.Errorf("Unconfined is %q", got)
	}
	p.sh(id, mount)

	for _, ref := range []string{"no-writes", "localhost/no-writes"} {
		id, cfg := p.start(func(c *runtimeapi.ContainerConfig) {
			profile(runtimeapi.SecurityProfile_Localhost, ref)(c)
			c.Command = []string{"sh", "-c", "mkdir /forbidden && touch /forbidden/x; sleep 3600"}
		})
		p.eventually(func() error {
			if out := p.log(cfg.GetLogPath()); !strings.Contains(out, "ermission denied") {
				return fmt.Errorf("the container's program may write: %q", out)
			}
			return nil
		})
		if got := p.sh(id, current); got != "no-writes (enforce)" {
			t.Errorf("%s is %q", ref, got)
		}
		p.fails(id, "touch /forbidden/y", "ermission denied")
		p.sh(id, "touch /y")
	}
}

// TestAppArmorFaults wants to be told of a profile that is not loaded, and the default one back when somebody took it.
func TestAppArmorFaults(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor")
	}
	p := newPod(t, nil)
	if _, _, err := p.create(profile(runtimeapi.SecurityProfile_Localhost, "not-there")); err == nil || !strings.Contains(err.Error(), `"not-there" is not loaded`) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	if _, _, err := p.create(profile(runtimeapi.SecurityProfile_Localhost, "")); err == nil {
		t.Error("a profile without a name is accepted")
	}
	before, _ := p.start(profile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
	if err := node.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("cri-containerd.apparmor.d")); err != nil {
		t.Fatal(err)
	}
	p.sh(before, "true")
	after, _ := p.start(profile(runtimeapi.SecurityProfile_RuntimeDefault, ""))
	p.fails(after, "mount -t tmpfs x /tmp", "ermission denied")
}
