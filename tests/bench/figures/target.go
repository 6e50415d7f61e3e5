// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"math"
	"strings"
)

// Target is what one figure has to reach.
type Target struct {
	// Name says what is measured, for a person.
	Name string
	// Of computes the figure from an area; NaN when it was not measured.
	Of func(*Area) float64
	// Unit of the figure; empty for a ratio.
	Unit string
	// Limit is the largest value that will do; with Least the smallest.
	Limit float64
	Least bool
}

// Mark says how a target fares.
type Mark string

// What can become of a target.
const (
	Met         Mark = "met"
	NotMet      Mark = "not met"
	NotMeasured Mark = "not measured"
)

// Check returns the measured value and whether it will do.
func (t Target) Check(a *Area) (float64, Mark) {
	if a == nil {
		return math.NaN(), NotMeasured
	}
	v := t.Of(a)
	switch {
	case math.IsNaN(v):
		return v, NotMeasured
	case t.Least == (v >= t.Limit) || v == t.Limit:
		return v, Met
	default:
		return v, NotMet
	}
}

// limit prints the limit as "≤ 5 ms".
func (t Target) limit() string {
	sign := "≤ "
	if t.Least {
		sign = "≥ "
	}
	return strings.TrimSpace(sign + number(t.Limit) + " " + t.Unit)
}

// Median is the median of a figure of a peer.
func Median(group, name, peer string) func(*Area) float64 { return At(group, name, peer, 0.5) }

// At is a quantile, 0.5, 0.9 or 0.99, of a figure of a peer.
func At(group, name, peer string, q float64) func(*Area) float64 {
	return func(a *Area) float64 {
		f := a.Find(group, name)
		if f == nil || f.Values[peer] == nil {
			return math.NaN()
		}
		switch v := f.Values[peer]; q {
		case 0.9:
			return v.P90
		case 0.99:
			return v.P99
		default:
			return v.P50
		}
	}
}

// Ratio is a figure of a peer to that of the figure's base peer.
func Ratio(group, name, peer string) func(*Area) float64 {
	return func(a *Area) float64 {
		f := a.Find(group, name)
		if f == nil || f.Values[peer] == nil || f.Values[peer].Ratio == 0 {
			return math.NaN()
		}
		return f.Values[peer].Ratio
	}
}

// Over divides one value by another.
func Over(x, y func(*Area) float64) func(*Area) float64 {
	return func(a *Area) float64 {
		v := x(a) / y(a)
		if math.IsInf(v, 0) {
			return math.NaN()
		}
		return v
	}
}

// Plus adds values up; those that were not measured make the sum unknown.
func Plus(of ...func(*Area) float64) func(*Area) float64 {
	return func(a *Area) float64 {
		sum := 0.0
		for _, f := range of {
			sum += f(a)
		}
		return sum
	}
}

// Worst is the largest of values; the smallest with least.
func Worst(least bool, of ...func(*Area) float64) func(*Area) float64 {
	return func(a *Area) float64 {
		out := of[0](a)
		for _, f := range of[1:] {
			if least {
				out = math.Min(out, f(a))
			} else {
				out = math.Max(out, f(a))
			}
		}
		return out
	}
}
