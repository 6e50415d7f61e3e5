// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// labels picks the SELinux labels: none for privileged containers, the pod's for containers without options of their own. One
// that sets only some options keeps the pod's level, so that the containers of a pod can share its volumes.
func (b *builder) labels() error {
	if !b.in.Host.SELinux {
		return nil
	}
	pod := b.in.Sandbox
	options := labelOptions(b.security().GetSelinuxOptions())
	switch {
	case b.security().GetPrivileged():
		options = []string{"disable"}
	case len(options) == 0 && pod.ProcessLabel != "":
		b.setLabels(Labels{Process: pod.ProcessLabel, Mount: pod.MountLabel})
		return nil
	case b.security().GetSelinuxOptions().GetLevel() == "" && pod.ProcessLabel != "":
		options = append(options, "level:"+level(pod.ProcessLabel))
	}
	labels, err := b.in.System.Labels(options)
	if err != nil {
		return fmt.Errorf(secField+"selinux_options: %w", err)
	}
	b.setLabels(labels)
	b.out.NewLabels = labels.Process != "" && level(labels.Process) != level(pod.ProcessLabel)
	return nil
}

func (b *builder) setLabels(l Labels) {
	b.out.Labels = l
	b.spec.Process.SelinuxLabel = l.Process
	b.spec.Linux.MountLabel = l.Mount
}

func labelOptions(o *runtimeapi.SELinuxOption) []string {
	all := []string{"user:" + o.GetUser(), "role:" + o.GetRole(), "type:" + o.GetType(), "level:" + o.GetLevel()}
	return slices.DeleteFunc(all, func(s string) bool { return strings.HasSuffix(s, ":") })
}

// level is the fourth field of a label, which itself contains colons.
func level(label string) string {
	parts := strings.SplitN(label, ":", 4)
	if len(parts) < 4 {
		return ""
	}
	return parts[3]
}

func validLevel(l string) bool {
	return regexp.MustCompile(`^s\d+(-s\d+)?(:c\d+(\.c\d+)?(,c\d+(\.c\d+)?)*(-s\d+(:c\d+(\.c\d+)?(,c\d+(\.c\d+)?)*)?)?)?$`).MatchString(l)
}
