// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"testing"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

// BenchmarkRootAttach measures an attach and a detach in process; namespaces
// are made outside the measured time.
func BenchmarkRootAttach(b *testing.B) {
	l := newLab(b, func(c *Config) { c.Quarantine = 0 })
	i := 0
	b.Run("attach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			pod := netnstest.New(b)
			i++
			req := Request{Key: Key{fmt.Sprintf("pod-%d", i), "eth0"}, NetNS: pod}
			b.StartTimer()
			if _, err := l.net.Attach(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := l.net.Detach(b.Context(), req.Key); err != nil {
				b.Fatal(err)
			}
			if err := l.net.wire.Reap(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("claim", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			pod := netnstest.New(b)
			i++
			req := Request{Key: Key{fmt.Sprintf("pod-%d", i), "eth0"}, NetNS: pod}
			if err := l.net.Warm(b.Context(), Key{fmt.Sprintf("warm-%d", i), "eth0"}, pod); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, err := l.net.Attach(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := l.net.Detach(b.Context(), req.Key); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("detach", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			pod := netnstest.New(b)
			i++
			req := Request{Key: Key{fmt.Sprintf("pod-%d", i), "eth0"}, NetNS: pod}
			if _, err := l.net.Attach(b.Context(), req); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := l.net.Detach(b.Context(), req.Key); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := l.net.wire.Reap(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
}
