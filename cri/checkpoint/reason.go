// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"bufio"
	"os"
	"strings"
)

// Reason returns the errors in a log of CRIU's, the first ones up to limit bytes;
// "" when there are none or no log. The runtime's own message is a status code.
func Reason(path string, limit int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // read-only
	var out []string
	size := 0
	for s := bufio.NewScanner(f); s.Scan() && size < limit; {
		_, text, ok := strings.Cut(s.Text(), "Error ")
		if !ok {
			continue
		}
		out = append(out, text)
		size += len(text)
	}
	return strings.Join(out, "; ")
}
