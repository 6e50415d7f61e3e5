// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strconv"

	"github.com/docker/go-units"
)

// exactly writes a size as a claim would, with no rounding.
func exactly(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"Ti", units.TiB}, {"Gi", units.GiB}, {"Mi", units.MiB}, {"Ki", units.KiB}} {
		if n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// about writes a size for a person: events that differ in a few blocks are one.
func about(n int64) string {
	return units.CustomSize("%.3g%s", float64(n), 1024, []string{" bytes", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"})
}
