// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"maps"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SysctlSet is the sysctls of a pod by the namespace they belong to; each is written from inside that namespace, under
// SysctlFile(name).
type SysctlSet struct {
	Net, IPC, UTS map[string]string
}

// all merges the three.
func (s SysctlSet) all() map[string]string {
	out := map[string]string{}
	maps.Copy(out, s.Net)
	maps.Copy(out, s.IPC)
	maps.Copy(out, s.UTS)
	return out
}

// Sysctls sorts a pod's sysctls by namespace and adds the administrator's defaults. One that is not namespaced, or whose
// namespace the pod shares with the host, is refused: it would change the node.
func Sysctls(pod *runtimeapi.PodSandboxConfig, policy Policy) (SysctlSet, error) {
	set := SysctlSet{Net: map[string]string{}, IPC: map[string]string{}, UTS: map[string]string{}}
	o := pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	hostNet := o.GetNetwork() == runtimeapi.NamespaceMode_NODE
	if !hostNet {
		if policy.UnprivilegedPorts {
			set.Net["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
		// The kernel refuses group IDs here that a user namespace does not map.
		userns := o.GetUsernsOptions()
		mapped := userns != nil && userns.GetMode() == runtimeapi.NamespaceMode_POD
		if policy.UnprivilegedICMP && !mapped {
			set.Net["net.ipv4.ping_group_range"] = "0 2147483647"
		}
	}
	var f faults
	put := func(field string, to map[string]string, name, value string, host bool) {
		if host {
			f.invalid(field, "the pod shares this namespace with the host")
			return
		}
		to[name] = value
	}
	given := pod.GetLinux().GetSysctls()
	for _, key := range slices.Sorted(maps.Keys(given)) {
		field := "linux.sysctls[" + key + "]"
		name := sysctlName(key)
		switch {
		case path.Clean(SysctlFile(name)) != SysctlFile(name) || strings.ContainsRune(name, 0):
			f.invalid(field, "not the name of a sysctl")
		case strings.HasPrefix(name, "net."):
			put(field, set.Net, name, given[key], hostNet)
		case ipcSysctl(name):
			put(field, set.IPC, name, given[key], o.GetIpc() == runtimeapi.NamespaceMode_NODE)
		case name == "kernel.domainname":
			put(field, set.UTS, name, given[key], hostNet)
		default:
			f.invalid(field, "not a namespaced sysctl, setting it would change the node")
		}
	}
	return set, f.err()
}

func ipcSysctl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	}, name)
}

// sysctlName brings the form with slashes (net/ipv4/conf/eth0.100/forwarding) into the one with dots, as sysctl(8) does.
func sysctlName(key string) string {
	if i := strings.IndexAny(key, "./"); i < 0 || key[i] == '.' {
		return key
	}
	return strings.NewReplacer("/", ".", ".", "/").Replace(key)
}

// SysctlFile is the file of a sysctl that Sysctls returned.
func SysctlFile(name string) string {
	return "/proc/sys/" + strings.NewReplacer("/", ".", ".", "/").Replace(name)
}
