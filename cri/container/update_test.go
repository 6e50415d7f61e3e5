// SPDX-License-Identifier: Apache-2.0

package container

import (
	"maps"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// TestForTask: what runc's update has no field for is named by its files, and the specification stays as it was.
func TestForTask(t *testing.T) {
	r := &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{Limit: new(int64(1 << 20))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "max", "hugetlb.2MB.rsvd.max": "0"},
	}
	got := forTask(r, spec.CgroupV2)
	want := map[string]string{"memory.high": "max", "hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "0"}
	if !maps.Equal(got.Unified, want) || !*got.Memory.CheckBeforeUpdate {
		t.Errorf("on version 2: %v, %v", got.Unified, got.Memory)
	}
	if r.Memory.CheckBeforeUpdate != nil || len(r.Unified) != 2 {
		t.Errorf("the specification was changed: %v", r)
	}
	if got := forTask(r, spec.CgroupV1); len(got.Unified) != 2 {
		t.Errorf("on version 1: %v", got.Unified)
	}
	if forTask(nil, spec.CgroupV2) != nil {
		t.Error("nothing became something")
	}
}
