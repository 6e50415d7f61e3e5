// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"time"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// A full table forgets the flows that were used least lately, and does not ask
// which of them are worth something: within seconds a flood of packets that
// nobody answers takes the place of every connection that rests. So room is made
// before the table has none, and what nobody will miss goes first. Until then, or
// should that come too late, connections are held: said to be in use
// (bpf/lib/hold.h).

const (
	// roomLook is the pause between two looks at how many records were made,
	// roomHaste that after one that saw many.
	roomLook  = 200 * time.Millisecond
	roomHaste = 20 * time.Millisecond
	// roomHigh and roomLow are quarters of the table: above the one, room is
	// made down to the other.
	roomHigh, roomLow = 3, 2
	// roomHold is where connections are held from, in quarters, each time that
	// another roomStep was made.
	roomHold = 2
	// roomStep is the part of the table that has to be made anew before a table
	// that stays full is looked through again, and that is many at one look.
	roomStep = 16
	// roomRest is how many times as long as a walk over the table that gained
	// little the next one waits: no more than a third of a processor.
	roomRest = 2
	// roomSays is the pause between two lines of the log.
	roomSays = time.Minute
)

// worth says which records go first when there is no room for all.
type worth int

const (
	worthClosed     worth = iota // the connection has ended
	worthUnanswered              // one side was heard so far
	worthBrief                   // a question and its answer, no stream
	worthOngoing                 // a connection, or a stream: stays
)

func (d *Dataplane) worth(f maps.Flow) worth {
	const fins = bpf.DatapathCtFlagsCT_FIN_ORIG | bpf.DatapathCtFlagsCT_FIN_REPLY
	_, ongoing := d.timeout(f)
	switch {
	case f.Is(fins) || f.Is(bpf.DatapathCtFlagsCT_RST):
		return worthClosed
	case !f.Is(bpf.DatapathCtFlagsCT_ORIG | bpf.DatapathCtFlagsCT_REPLY):
		return worthUnanswered
	case ongoing:
		return worthOngoing
	default:
		return worthBrief
	}
}

// censusAges bounds the ages that are told apart, in ticks: two minutes.
const censusAges = 1024

// census counts the records that may have to go, by worth and age.
type census [worthOngoing][censusAges]uint32

func (c *census) add(w worth, age, records uint32) {
	if w < worthOngoing {
		c[w][min(age, censusAges-1)] += records
	}
}

// recordsOf is how many records go with this one: the secondary of a translated
// flow goes with its primary.
func recordsOf(f maps.Flow) uint32 {
	switch {
	case f.Is(bpf.DatapathCtFlagsCT_SECONDARY):
		return 0
	case f.Is(bpf.DatapathCtFlagsCT_XLAT) && !f.Is(bpf.DatapathCtFlagsCT_DSR):
		return 2
	default:
		return 1
	}
}

// cut is what has to go: all that is worth less, and of this worth what is as old.
type cut struct {
	worth worth
	age   uint32
}

func (c cut) takes(w worth, age uint32) bool {
	return w < c.worth || w == c.worth && min(age, censusAges-1) >= c.age
}

// cut finds enough of them, but never the younger half: who has just asked may
// yet be answered.
func (c *census) cut(need uint32) cut {
	var all uint32
	for w := range c {
		for _, n := range c[w] {
			all += n
		}
	}
	need = min(need, all/2)
	for w := range c {
		for age := uint32(censusAges); age > 0 && need > 0; age-- {
			n := c[w][age-1]
			if n >= need {
				return cut{worth(w), age - 1}
			}
			need -= n
		}
	}
	return cut{} // unless age is 0 there, nothing is needed
}

// room is what the sweeper knows of the table's fill between two walks.
type room struct {
	counted uint32    // records after the last walk
	made    uint64    // records made until then, ever
	seen    uint64    // the same at the last look
	held    uint64    // the same when connections were held
	rest    time.Time // no walk for the sake of room before
	said    time.Time
}

// fills says whether the table may be that full by now, in quarters.
func (r *room) fills(made uint64, size uint32, quarters uint64) bool {
	return uint64(r.counted)+made-r.made > uint64(size)/4*quarters
}

// short says whether the table may be too full by now.
func (r *room) short(made uint64, size uint32) bool {
	return r.fills(made, size, roomHigh) && made-r.made >= uint64(size/roomStep) && !time.Now().Before(r.rest)
}

// walked takes down what a walk that took so long has left.
func (r *room) walked(counted, removed uint32, made uint64, size uint32, took time.Duration) {
	r.counted, r.made = counted, made
	r.rest = time.Time{}
	if removed < size/roomStep {
		r.rest = time.Now().Add(roomRest * took)
	}
}

// next is the pause before the next look.
func (r *room) next(made uint64, size uint32) time.Duration {
	many := made-r.seen >= uint64(size/roomStep)
	r.seen = made
	if many {
		return roomHaste
	}
	return roomLook
}

// crowded says whether the table has to be looked through for its fill's sake,
// and when to look at it again. On the way it holds connections.
func (d *Dataplane) crowded() (crowded bool, next time.Duration, err error) {
	made, err := d.flows.Made()
	if err != nil {
		return false, roomLook, err
	}
	size := d.flows.Size()
	if d.room.fills(made, size, roomHold) && made-d.room.held >= uint64(size/roomStep) {
		d.room.held = made
		err = d.kernel.HoldFlows()
	}
	return d.room.short(made, size), d.room.next(made, size), err
}

// makeRoom removes what is worth least, after a walk that counted so many
// records, and returns how many it removed.
func (d *Dataplane) makeRoom(ctx context.Context, now maps.Ticks, count uint32, c *census) (uint32, error) {
	size := d.flows.Size()
	if uint64(count) <= uint64(size)/4*roomHigh {
		return 0, nil
	}
	goes := c.cut(count - size/4*roomLow)
	var removed uint32
	var failed error
	err := d.flows.Each(func(f maps.Flow) bool {
		n := recordsOf(f)
		if w := d.worth(f); n == 0 || !goes.takes(w, now.AgeOf(f.Seen)) || w == worthBrief && d.streams(f) {
			return true
		}
		failed = d.flows.Forget(f)
		removed += n
		return failed == nil
	})
	if failed != nil {
		err = failed
	}
	d.flowsEvicted.Add(uint64(removed))
	if time.Since(d.room.said) > roomSays {
		d.room.said = time.Now()
		d.log.WarnContext(ctx, "table of flows is nearly full, those worth least were removed",
			"flows", count, "size", size, "removed", removed, "hint", "raise dataplane.maps.conntrack")
	}
	return removed, err
}

// streams says whether the answers to a question go on and on.
func (d *Dataplane) streams(f maps.Flow) bool {
	if !f.Is(bpf.DatapathCtFlagsCT_XLAT) {
		return false
	}
	other, ok := d.flows.Partner(f)
	return ok && d.worth(other) == worthOngoing
}
