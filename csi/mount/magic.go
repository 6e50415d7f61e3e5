// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Names that Detect answers beside file-system types.
const (
	// FormatBlank: the places where a signature could stand are all zero.
	FormatBlank = ""
	// FormatUnknown: there is data, but no signature we know.
	FormatUnknown = "unknown"
)

type signature struct {
	name   string
	offset int64
	magic  []byte
}

func signatures() []signature {
	return []signature{
		{"luks", 0, []byte("LUKS\xba\xbe")},
		{"xfs", 0, []byte("XFSB")},
		{"squashfs", 0, []byte("hsqs")},
		{"erofs", 1024, []byte{0xe2, 0xe1, 0xf5, 0xe0}},
		{"lvm2", 512 + 24, []byte("LVM2 001")},
		{"gpt", 512, []byte("EFI PART")},
		{"gpt", 4096, []byte("EFI PART")},
		{"swap", 4086, []byte("SWAPSPACE2")},
		{"swap", 65526, []byte("SWAPSPACE2")},
		{"btrfs", 65536 + 64, []byte("_BHRfS_M")},
		{"iso9660", 32769, []byte("CD001")},
		{"f2fs", 1024, []byte{0x10, 0x20, 0xf5, 0xf2}},
		{"mdraid", 4096, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"mdraid", 0, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
	}
}

// detectWindow is how much of the start Detect reads: it covers every signature
// in the table.
const detectWindow = 128 << 10

// Detect names what the image or device at path carries: a file-system type,
// FormatBlank, or FormatUnknown. It reads the bytes itself, because a helper
// program that fails looks like one that found nothing.
func Detect(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("detect format: %w", err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, detectWindow)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("detect format of %s: %w", path, err)
	}
	return DetectBytes(buf[:n]), nil
}

// DetectBytes is Detect on the first 128 KiB of a device.
func DetectBytes(b []byte) string {
	for _, s := range signatures() {
		if at := s.offset + int64(len(s.magic)); at <= int64(len(b)) && bytes.Equal(b[s.offset:at], s.magic) {
			return s.name
		}
	}
	if len(b) >= 1024+264 && binary.LittleEndian.Uint16(b[1024+56:]) == 0xEF53 {
		return extVersion(b[1024:])
	}
	if len(b) >= 512 && b[510] == 0x55 && b[511] == 0xAA {
		return "mbr"
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return FormatBlank
	}
	return FormatUnknown
}

// extVersion tells ext2, ext3 and ext4 apart by their feature words.
func extVersion(sb []byte) string {
	compat := binary.LittleEndian.Uint32(sb[92:])
	incompat := binary.LittleEndian.Uint32(sb[96:])
	const (
		compatJournal   = 0x4
		incompatJournal = 0x8
		ext4Incompat    = 0x40 | 0x80 | 0x200 // extents, 64bit, flex_bg
	)
	switch {
	case incompat&incompatJournal != 0:
		return "jbd"
	case incompat&ext4Incompat != 0:
		return "ext4"
	case compat&compatJournal != 0:
		return "ext3"
	default:
		return "ext2"
	}
}
