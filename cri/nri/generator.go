// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// generator edits a specification the way NRI's library wants it edited. The
// library's usual one, of opencontainers/runtime-tools, brings a JSON schema
// validator along. A specification that was built here has no nil in what is
// written to, but for what is made below.
type generator struct{ s *specs.Spec }

var _ generate.UnderlyingGenerator = (*generator)(nil)

func (g *generator) Spec() *specs.Spec { return g.s }

// made returns what p points to, made when it is nil.
func made[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

// put writes to a map that may be nil.
func put(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

func (g *generator) resources() *specs.LinuxResources { return made(&g.s.Linux.Resources) }
func (g *generator) cpu() *specs.LinuxCPU             { return made(&g.resources().CPU) }
func (g *generator) memory() *specs.LinuxMemory       { return made(&g.resources().Memory) }
func (g *generator) hooks() *specs.Hooks              { return made(&g.s.Hooks) }

func (g *generator) AddAnnotation(key, value string)   { put(&g.s.Annotations, key, value) }
func (g *generator) RemoveAnnotation(key string)       { delete(g.s.Annotations, key) }
func (g *generator) AddLinuxSysctl(key, value string)  { put(&g.s.Linux.Sysctl, key, value) }
func (g *generator) RemoveLinuxSysctl(key string)      { delete(g.s.Linux.Sysctl, key) }
func (g *generator) SetProcessArgs(args []string)      { g.s.Process.Args = args }
func (g *generator) SetProcessOOMScoreAdj(adj int)     { g.s.Process.OOMScoreAdj = &adj }
func (g *generator) SetLinuxCgroupsPath(path string)   { g.s.Linux.CgroupsPath = path }
func (g *generator) ClearProcessEnv()                  { g.s.Process.Env = nil }
func (g *generator) ClearMounts()                      { g.s.Mounts = nil }
func (g *generator) Mounts() []specs.Mount             { return g.s.Mounts }
func (g *generator) AddMount(m specs.Mount)            { g.s.Mounts = append(g.s.Mounts, m) }
func (g *generator) SetLinuxResourcesCPUCpus(v string) { g.cpu().Cpus = v }
func (g *generator) SetLinuxResourcesCPUMems(v string) { g.cpu().Mems = v }

func (g *generator) SetLinuxResourcesCPUPeriod(v uint64)         { g.cpu().Period = &v }
func (g *generator) SetLinuxResourcesCPUQuota(v int64)           { g.cpu().Quota = &v }
func (g *generator) SetLinuxResourcesCPUShares(v uint64)         { g.cpu().Shares = &v }
func (g *generator) SetLinuxResourcesCPURealtimePeriod(v uint64) { g.cpu().RealtimePeriod = &v }
func (g *generator) SetLinuxResourcesCPURealtimeRuntime(v int64) { g.cpu().RealtimeRuntime = &v }
func (g *generator) SetLinuxResourcesMemoryLimit(v int64)        { g.memory().Limit = &v }
func (g *generator) SetLinuxResourcesMemorySwap(v int64)         { g.memory().Swap = &v }
func (g *generator) AddLinuxResourcesUnified(key, value string) {
	put(&g.resources().Unified, key, value)
}

func (g *generator) AddPreStartHook(h specs.Hook) {
	//nolint:staticcheck // deprecated by the specification and still in use by plugins
	g.hooks().Prestart = append(g.hooks().Prestart, h)
}

func (g *generator) AddPostStartHook(h specs.Hook) {
	g.hooks().Poststart = append(g.hooks().Poststart, h)
}

func (g *generator) AddPostStopHook(h specs.Hook) { g.hooks().Poststop = append(g.hooks().Poststop, h) }

func (g *generator) AddProcessEnv(name, value string) {
	g.s.Process.Env = append(g.s.Process.Env, name+"="+value)
}

func (g *generator) RemoveMount(dest string) {
	g.s.Mounts = slices.DeleteFunc(g.s.Mounts, func(m specs.Mount) bool { return m.Destination == dest })
}

func (g *generator) AddDevice(d specs.LinuxDevice) {
	g.RemoveDevice(d.Path)
	g.s.Linux.Devices = append(g.s.Linux.Devices, d)
}

func (g *generator) RemoveDevice(path string) {
	g.s.Linux.Devices = slices.DeleteFunc(g.s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (g *generator) AddLinuxResourcesDevice(allow bool, typ string, major, minor *int64, access string) {
	r := g.resources()
	r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: typ, Major: major, Minor: minor, Access: access})
}

func (g *generator) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := g.resources()
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (g *generator) SetLinuxRootPropagation(p string) error {
	if !slices.Contains([]string{"", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}, p) {
		return fmt.Errorf("root propagation %q: %w", p, errdefs.ErrInvalidArgument)
	}
	g.s.Linux.RootfsPropagation = p
	return nil
}

func (g *generator) AddOrReplaceLinuxNamespace(typ, path string) error {
	if err := g.RemoveLinuxNamespace(typ); err != nil {
		return err
	}
	g.s.Linux.Namespaces = append(g.s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(typ), Path: path})
	return nil
}

func (g *generator) RemoveLinuxNamespace(typ string) error {
	known := []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace,
	}
	if !slices.Contains(known, specs.LinuxNamespaceType(typ)) {
		return fmt.Errorf("namespace type %q: %w", typ, errdefs.ErrInvalidArgument)
	}
	g.s.Linux.Namespaces = slices.DeleteFunc(g.s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return string(n.Type) == typ })
	return nil
}
