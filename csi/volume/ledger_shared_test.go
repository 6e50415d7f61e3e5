// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"maps"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
)

func TestSharedDebts(t *testing.T) {
	at := func(age int, id string, owed bool, blocks ...backend.Range) sharer {
		return sharer{id: id, made: time.Unix(int64(age), 0), owed: owed, blocks: blocks}
	}
	all := backend.Range{Offset: 100, Length: 100}
	for _, tc := range []struct {
		name   string
		all    []sharer
		others bool
		want   map[string]int64
	}{
		{name: "nobody", want: map[string]int64{}},
		{"a volume and its clone", []sharer{at(2, "clone", true, all), at(1, "a", true, all)}, false, map[string]int64{"clone": 100}},
		{"two clones", []sharer{at(1, "a", true, all), at(2, "b", true, all), at(3, "c", true, all)}, false, map[string]int64{"b": 100, "c": 100}},
		{"a snapshot", []sharer{at(1, "a", true, all), at(2, "s", false, all)}, false, map[string]int64{"a": 100}},
		{"two snapshots", []sharer{at(1, "a", true, all), at(2, "s", false, all), at(3, "s2", false, all)}, false, map[string]int64{"a": 100}},
		{"a snapshot and a clone", []sharer{at(1, "a", true, all), at(2, "s", false, all), at(3, "b", true, all)}, false, map[string]int64{"a": 100, "b": 100}},
		{"someone who is not known", []sharer{at(1, "a", true, all)}, false, map[string]int64{"a": 100}},
		{"something being destroyed", []sharer{at(1, "a", true, all), at(2, "b", true, all)}, true, map[string]int64{"a": 100, "b": 100}},
		{"parts", []sharer{
			at(1, "a", true, backend.Range{Offset: 0, Length: 150}), at(2, "b", true, backend.Range{Offset: 50, Length: 150}),
			at(3, "s", false, backend.Range{Offset: 120, Length: 10}),
		}, false, map[string]int64{"a": 50 + 10, "b": 100 + 50}},
		{"no address", []sharer{at(1, "a", true, backend.Range{Offset: -1, Length: 7}), at(2, "b", true, backend.Range{Offset: -1, Length: 7})}, false, map[string]int64{"a": 7, "b": 7}},
		{"neighbours", []sharer{at(1, "a", true, backend.Range{Offset: 0, Length: 10}, backend.Range{Offset: 10, Length: 10}), at(2, "b", true, backend.Range{Offset: 0, Length: 20})}, false, map[string]int64{"b": 20}},
	} {
		if got := sharedDebts(tc.all, tc.others); !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
