// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkRootPlugin measures ADD and DEL through the program, fork and exec
// included, and the program alone (VERSION asks no daemon).
func BenchmarkRootPlugin(b *testing.B) {
	b.Run("routing", func(b *testing.B) { benchPlugin(b, newNode(b)) })
	b.Run("ebpf", func(b *testing.B) { benchPlugin(b, newAgent(b).node) })
}

func benchPlugin(b *testing.B, n *node) {
	b.Helper()
	i := 0
	next := func(b *testing.B) (id, ns string) {
		b.Helper()
		i++
		id = fmt.Sprintf("pod-%d", i)
		return id, n.newNS()
	}
	conf := n.conf("1.1.0", "")
	must := func(env map[string]string, conf string) {
		if _, e := n.call(env, conf); e != nil {
			b.Error(e)
		}
	}
	timed := func(b *testing.B, f func(id, ns string) func()) {
		b.Helper()
		var took []time.Duration
		for b.Loop() {
			id, ns := next(b)
			g := f(id, ns)
			begin := time.Now()
			g()
			took = append(took, time.Since(begin))
			must(env("DEL", id, ns), conf)
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	}
	b.Run("version", func(b *testing.B) {
		timed(b, func(string, string) func() { return func() { must(env("VERSION", "", ""), "") } })
	})
	b.Run("add", func(b *testing.B) {
		timed(b, func(id, ns string) func() { return func() { must(env("ADD", id, ns), conf) } })
	})
	b.Run("del", func(b *testing.B) {
		timed(b, func(id, ns string) func() {
			must(env("ADD", id, ns), conf)
			return func() { must(env("DEL", id, ns), conf) }
		})
	})
	b.Run("add-20-parallel", func(b *testing.B) {
		begin, pods := time.Duration(0), 0
		for b.Loop() {
			b.StopTimer()
			ids := map[string]string{}
			for range 100 {
				id, ns := next(b)
				ids[id] = ns
			}
			at := time.Now()
			var wg sync.WaitGroup
			slots := make(chan struct{}, 20)
			b.StartTimer()
			for id, ns := range ids {
				wg.Go(func() {
					slots <- struct{}{}
					must(env("ADD", id, ns), conf)
					<-slots
				})
			}
			wg.Wait()
			begin += time.Since(at)
			pods += len(ids)
			b.StopTimer()
			for id, ns := range ids {
				must(env("DEL", id, ns), conf)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(pods)/begin.Seconds(), "pods/s")
	})
}
