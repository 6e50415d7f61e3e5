// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"strings"
	"unicode"
)

// maxIfName is IFNAMSIZ of linux/if.h without the final zero.
const maxIfName = 15

// ValidName says if a container id or the name of a network is as the CNI
// specification has it: [a-zA-Z0-9][a-zA-Z0-9_.\-]*.
func ValidName(s string) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}

// ValidIfName says if the kernel takes s as the name of an interface; lo is
// there already in every namespace.
func ValidIfName(s string) bool {
	return s != "" && len(s) <= maxIfName && s != "." && s != ".." && s != "lo" &&
		!strings.ContainsFunc(s, func(r rune) bool { return r == '/' || r == ':' || unicode.IsSpace(r) })
}
