// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

func TestWorth(t *testing.T) {
	const (
		orig  = bpf.DatapathCtFlagsCT_ORIG
		both  = orig | bpf.DatapathCtFlagsCT_REPLY
		rst   = bpf.DatapathCtFlagsCT_RST
		fin   = bpf.DatapathCtFlagsCT_FIN_ORIG
		ended = both | fin | bpf.DatapathCtFlagsCT_FIN_REPLY
	)
	d := &Dataplane{cfg: Default()}
	for _, c := range []struct {
		what  string
		proto uint8
		flags bpf.DatapathCtFlags
		lasts time.Duration
		want  worth
	}{
		{"a SYN", protoTCP, orig, 0, worthUnanswered},
		{"a connection", protoTCP, both, 0, worthOngoing},
		{"a connection that one side ended", protoTCP, both | fin, time.Minute, worthOngoing},
		{"a connection that both ended", protoTCP, ended, time.Minute, worthClosed},
		{"a refused connection", protoTCP, both | rst, 0, worthClosed},
		{"a datagram", protoUDP, orig, 0, worthUnanswered},
		{"many datagrams, never answered", protoUDP, orig, time.Hour, worthUnanswered},
		{"a question and its answer", protoUDP, both, time.Second, worthBrief},
		{"a stream of datagrams", protoUDP, both, time.Minute, worthOngoing},
		{"a ping", 1, both, time.Minute, worthBrief},
	} {
		f := maps.Flow{Orig: maps.Tuple{Proto: c.proto}, Flags: c.flags, Since: 1000, Seen: 1000 + maps.Ticks(maps.TicksOf(c.lasts))}
		if got := d.worth(f); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

func TestCensusCut(t *testing.T) {
	fill := func(counts map[worth]map[uint32]int) *census {
		var c census
		for w, ages := range counts {
			for age, n := range ages {
				for range n {
					c.add(w, age, 1)
				}
			}
		}
		return &c
	}
	for _, c := range []struct {
		what   string
		counts map[worth]map[uint32]int
		need   uint32
		goes   int // how many are taken
	}{
		{"nothing is needed", map[worth]map[uint32]int{worthUnanswered: {5: 10}}, 0, 0},
		{"the oldest", map[worth]map[uint32]int{worthUnanswered: {1: 10, 5: 10, 9: 10}}, 10, 10},
		{"a whole tick", map[worth]map[uint32]int{worthUnanswered: {1: 10, 5: 10, 9: 10}}, 11, 20},
		{"closed ones before unanswered ones", map[worth]map[uint32]int{worthClosed: {0: 10}, worthUnanswered: {900: 20}}, 10, 10},
		{"then unanswered ones", map[worth]map[uint32]int{worthClosed: {0: 10}, worthUnanswered: {900: 10, 1: 20}}, 11, 20},
		{"then brief ones", map[worth]map[uint32]int{worthClosed: {0: 10}, worthBrief: {7: 10, 0: 20}}, 15, 20},
		{"the younger half stays", map[worth]map[uint32]int{worthUnanswered: {9: 10, 1: 10}}, 1000, 10},
		{"what goes on stays", map[worth]map[uint32]int{worthOngoing: {900: 100}}, 50, 0},
		{"older than can be told", map[worth]map[uint32]int{worthUnanswered: {5000: 10, 1: 10}}, 10, 10},
	} {
		cut := fill(c.counts).cut(c.need)
		goes := 0
		for w, ages := range c.counts {
			for age, n := range ages {
				if cut.takes(w, age) {
					goes += n
				}
			}
		}
		if goes != c.goes {
			t.Errorf("%s: %+v takes %d, want %d", c.what, cut, goes, c.goes)
		}
	}
}

func TestRoomShort(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		what string
		room room
		made uint64
		want bool
	}{
		{"half full", room{counted: 400, made: 7}, 100 + 7, false},
		{"more than three quarters", room{counted: 400, made: 7}, 400 + 7, true},
		{"as full as it was left", room{counted: 900, made: 7}, 10 + 7, false},
		{"still full, and more", room{counted: 900, made: 7}, 64 + 7, true},
		{"looked through just now", room{counted: 400, made: 7, rest: now.Add(time.Hour)}, 400 + 7, false},
	} {
		if got := c.room.short(c.made, 1024); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
