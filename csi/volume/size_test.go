// SPDX-License-Identifier: Apache-2.0

package volume

import "testing"

func TestSizesForPeople(t *testing.T) {
	for n, want := range map[int64][2]string{
		0: {"0 bytes", "0 bytes"}, 5000: {"5000 bytes", "4.88Ki"}, 4096: {"4Ki", "4Ki"}, 320 << 20: {"320Mi", "320Mi"},
		320<<20 + 1: {"335544321 bytes", "320Mi"}, 90 << 40: {"90Ti", "90Ti"}, 24139620352: {"23573848Ki", "22.5Gi"},
	} {
		if e, a := exactly(n), about(n); e != want[0] || a != want[1] {
			t.Errorf("%d is %q exactly, about %q; want %q", n, e, a, want)
		}
	}
}
