// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxHostname is the kernel's limit, __NEW_UTS_LEN.
const maxHostname = 64

// validate reports all faults of a request at once; nothing has happened yet.
func validate(cfg *runtimeapi.PodSandboxConfig) error {
	var f faults
	if cfg == nil {
		f.add("config", "is missing")
		return f.err()
	}
	md := cfg.GetMetadata()
	for name, v := range map[string]string{"name": md.GetName(), "namespace": md.GetNamespace(), "uid": md.GetUid()} {
		if v == "" {
			f.add("metadata."+name, "is empty")
		}
	}
	if len(cfg.GetHostname()) > maxHostname || strings.ContainsAny(cfg.GetHostname(), "\x00\n/") {
		f.add("hostname", "%q is no host name of at most %d bytes", cfg.GetHostname(), maxHostname)
	}
	if d := cfg.GetLogDirectory(); d != "" && !filepath.IsAbs(d) {
		f.add("log_directory", "%q is not absolute", d)
	}
	for _, list := range [][]string{cfg.GetDnsConfig().GetServers(), cfg.GetDnsConfig().GetSearches(), cfg.GetDnsConfig().GetOptions()} {
		for _, s := range list {
			if strings.ContainsAny(s, "\x00\n\r") {
				f.add("dns_config", "%q has a line break", s)
			}
		}
	}
	validateLinux(&f, cfg.GetLinux())
	return f.err()
}

func validateLinux(f *faults, l *runtimeapi.LinuxPodSandboxConfig) {
	if p := l.GetCgroupParent(); strings.ContainsRune(p, 0) || hasDotDot(p) {
		f.add("linux.cgroup_parent", "%q is malformed", p)
	}
	sc := l.GetSecurityContext()
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		f.add("linux.security_context.run_as_group", "is set without run_as_user")
	}
	o := sc.GetNamespaceOptions()
	for name, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "ipc": o.GetIpc()} {
		if mode != runtimeapi.NamespaceMode_POD && mode != runtimeapi.NamespaceMode_NODE {
			f.add("linux.security_context.namespace_options."+name, "%s is not possible for a pod", mode)
		}
	}
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE:
	default:
		f.add("linux.security_context.namespace_options.pid", "%s is not possible for a pod", o.GetPid())
	}
	validateUserNamespace(f, o)
	if err := checkSysctls(l.GetSysctls(), wanted(o)); err != nil {
		f.add("linux.sysctls", "%v", err)
	}
}

// validateUserNamespace wants what the kubelet gives: one mapping for users,
// the same one for groups, that maps root.
func validateUserNamespace(f *faults, o *runtimeapi.NamespaceOption) {
	const field = "linux.security_context.namespace_options.userns_options"
	u := o.GetUsernsOptions()
	if u == nil {
		return
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			f.add(field, "has mappings in mode NODE")
		}
		return
	case runtimeapi.NamespaceMode_POD:
	default:
		f.add(field+".mode", "%s is not possible", u.GetMode())
		return
	}
	for name, list := range map[string][]*runtimeapi.IDMapping{"uids": u.GetUids(), "gids": u.GetGids()} {
		if len(list) != 1 {
			f.add(field+"."+name, "has %d mappings, not exactly one", len(list))
			continue
		}
		g := list[0]
		switch {
		case g.GetContainerId() != 0:
			f.add(field+"."+name, "does not map id 0")
		case g.GetLength() == 0, uint64(g.GetHostId())+uint64(g.GetLength()) > math.MaxUint32:
			f.add(field+"."+name, "maps no valid range of ids")
		}
	}
	if o.GetPid() == runtimeapi.NamespaceMode_NODE || o.GetIpc() == runtimeapi.NamespaceMode_NODE {
		f.add(field, "cannot be combined with the host's process or IPC namespace")
	}
}

func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// faults collects what is wrong with a request.
type faults struct{ errs []error }

func (f *faults) add(field, format string, args ...any) {
	f.errs = append(f.errs, fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument))
}

func (f *faults) err() error { return errors.Join(f.errs...) }
