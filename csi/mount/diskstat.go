// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DiskIO is what one kind of request has done on a device since the device was made.
type DiskIO struct {
	Count, Bytes uint64
	Time         time.Duration
}

// Sub is what was done since before.
func (d DiskIO) Sub(before DiskIO) DiskIO {
	return DiskIO{Count: d.Count - before.Count, Bytes: d.Bytes - before.Bytes, Time: d.Time - before.Time}
}

// DiskStat is a block device's account of its requests.
type DiskStat struct {
	Read, Write, Flush DiskIO
	// Seq tells apart what was attached to the device one after the other (the kernel's
	// disk sequence number, since 5.15); "" where it is not to be had.
	Seq string
}

// ReadDiskStat reads the account of a block device: two small files, no device is
// opened.
func ReadDiskStat(rdev uint64) (DiskStat, error) {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return DiskStat{}, fmt.Errorf("read device statistics: %w", err)
	}
	s, err := parseDiskStat(string(text))
	if err != nil {
		return DiskStat{}, fmt.Errorf("read %s/stat: %w", dir, err)
	}
	if seq, err := os.ReadFile(filepath.Join(dir, "diskseq")); err == nil {
		s.Seq = strings.TrimSpace(string(seq))
	}
	return s, nil
}

// The places of a stat file, as Documentation/block/stat.rst has them.
const (
	statRead, statWrite, statFlush = 0, 4, 15
	statSector                     = 512
)

func parseDiskStat(text string) (DiskStat, error) {
	var n []uint64
	for f := range strings.FieldsSeq(text) {
		v, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return DiskStat{}, err
		}
		n = append(n, v)
	}
	if len(n) < statWrite+4 {
		return DiskStat{}, fmt.Errorf("%d fields", len(n))
	}
	ms := func(v uint64) time.Duration { return time.Duration(v) * time.Millisecond } //nolint:gosec // years fit
	rw := func(at int) DiskIO {
		return DiskIO{Count: n[at], Bytes: n[at+2] * statSector, Time: ms(n[at+3])}
	}
	s := DiskStat{Read: rw(statRead), Write: rw(statWrite)}
	if len(n) > statFlush+1 {
		s.Flush = DiskIO{Count: n[statFlush], Time: ms(n[statFlush+1])}
	}
	return s, nil
}
