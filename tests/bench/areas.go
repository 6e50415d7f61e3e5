// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/kubelet"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
	"github.com/nodeagent/nodeagent/tests/bench/network"
	"github.com/nodeagent/nodeagent/tests/bench/plugins"
	"github.com/nodeagent/nodeagent/tests/bench/runtimes"
	"github.com/nodeagent/nodeagent/tests/bench/services"
	"github.com/nodeagent/nodeagent/tests/bench/volumes"
)

// area is one thing that can be measured by itself.
type area struct {
	name, title string
	measure     func(context.Context, *lab.Run) error
	targets     []figures.Target
	// chart is the group of figures that is drawn; empty: none.
	chart string
}

// settings are how much is measured.
type settings struct {
	runtimes runtimes.Options
	network  network.Options
	plugins  plugins.Options
	services services.Options
	volumes  volumes.Options
	kubelet  kubelet.Options
}

func defaults() *settings {
	return &settings{
		runtimes.Default(), network.Default(), plugins.Default(), services.Default(), volumes.Default(), kubelet.Default(),
	}
}

// quick is enough to see that everything works, in about four minutes.
func (s *settings) quick() {
	s.runtimes.Quick()
	s.network.Quick()
	s.plugins.Quick()
	s.services.Quick()
	s.volumes.Quick()
	s.kubelet.Quick()
}

func (s *settings) flags(fs *flag.FlagSet) {
	s.runtimes.Flags(fs)
	s.network.Flags(fs)
	s.plugins.Flags(fs)
	s.services.Flags(fs)
	s.volumes.Flags(fs)
	s.kubelet.Flags(fs)
}

// areas in the order in which they are measured and shown.
func (s *settings) areas() []area {
	return []area{
		{"cri", "The CRI, verb by verb", s.runtimes.MeasureVerbs, runtimes.VerbTargets(), runtimes.GroupVerbs},
		{"density", "With 60 and 110 pods", s.runtimes.MeasureDensity, runtimes.DensityTargets(), runtimes.GroupMemory},
		{"churn", "A thousand pods", s.runtimes.MeasureChurn, runtimes.ChurnTargets(), ""},
		{"pull", "Pulling images", s.runtimes.MeasurePull, nil, runtimes.GroupPull},
		{"kubelet", "Under the real kubelet", s.kubelet.Measure, kubelet.Targets(), kubelet.GroupReady},
		{"network", "The pod network", s.network.Measure, network.Targets(), network.GroupSame},
		{"cni", "CNI ADD and DEL", s.plugins.Measure, plugins.Targets(), plugins.Group},
		{"services", "Services", s.services.Measure, services.Targets(), services.GroupOutside},
		{"volumes", "Volumes", s.volumes.Measure, volumes.Targets(), volumes.GroupDisk},
	}
}

func names(all []area) []string {
	var out []string
	for _, a := range all {
		out = append(out, a.name)
	}
	return out
}

func list() error {
	for _, a := range defaults().areas() {
		fmt.Printf("%-10s %s\n", a.name, a.title)
	}
	return nil
}
