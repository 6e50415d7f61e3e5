// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The annotations that containerd's own CRI writes; VM runtimes, NRI plugins and node tools know containers by them.
const (
	AnnotationContainerType    = "io.kubernetes.cri.container-type"
	AnnotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	AnnotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	AnnotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
	AnnotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	AnnotationSandboxLogDir    = "io.kubernetes.cri.sandbox-log-directory"
	AnnotationSandboxImage     = "io.kubernetes.cri.podsandbox.image-name"
	AnnotationSandboxCPUPeriod = "io.kubernetes.cri.sandbox-cpu-period"
	AnnotationSandboxCPUQuota  = "io.kubernetes.cri.sandbox-cpu-quota"
	AnnotationSandboxCPUShares = "io.kubernetes.cri.sandbox-cpu-shares"
	AnnotationSandboxMemory    = "io.kubernetes.cri.sandbox-memory"
	AnnotationContainerName    = "io.kubernetes.cri.container-name"
	AnnotationImageName        = "io.kubernetes.cri.image-name"
	// AnnotationShimGroup names the shim that containers share: one per pod.
	AnnotationShimGroup = "io.containerd.runc.v2.group"
)

func (b *builder) annotate() {
	a := b.spec.Annotations
	passOn(a, b.in.Sandbox.Config.GetAnnotations(), b.in.Handler.PodAnnotations)
	passOn(a, b.in.Config.GetAnnotations(), b.in.Handler.ContainerAnnotations)
	annotatePod(b.spec, b.in.Sandbox)
	a[AnnotationContainerType] = "container"
	a[AnnotationContainerName] = b.in.Config.GetMetadata().GetName()
	a[AnnotationImageName] = b.in.Image.Name
}

// passOn copies the annotations whose key matches one of the patterns.
func passOn(to, from map[string]string, patterns []string) {
	for key, value := range from {
		for _, pattern := range patterns {
			if ok, err := path.Match(pattern, key); err == nil && ok {
				to[key] = value
				break
			}
		}
	}
}

func annotatePod(s *specs.Spec, pod Sandbox) {
	s.Annotations[AnnotationSandboxID] = pod.ID
	s.Annotations[AnnotationShimGroup] = pod.ID
	s.Annotations[AnnotationSandboxNamespace] = pod.Config.GetMetadata().GetNamespace()
	s.Annotations[AnnotationSandboxUID] = pod.Config.GetMetadata().GetUid()
	s.Annotations[AnnotationSandboxName] = pod.Config.GetMetadata().GetName()
}

func annotateResources(s *specs.Spec, r *runtimeapi.LinuxContainerResources) {
	if r == nil {
		return
	}
	s.Annotations[AnnotationSandboxCPUPeriod] = strconv.FormatInt(r.GetCpuPeriod(), 10)
	s.Annotations[AnnotationSandboxCPUQuota] = strconv.FormatInt(r.GetCpuQuota(), 10)
	s.Annotations[AnnotationSandboxCPUShares] = strconv.FormatInt(r.GetCpuShares(), 10)
	s.Annotations[AnnotationSandboxMemory] = strconv.FormatInt(r.GetMemoryLimitInBytes(), 10)
}
