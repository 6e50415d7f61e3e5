// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package spec

import "github.com/opencontainers/runtime-spec/specs-go"

// noForeign leaves the profile as it is where nothing is known.
func noForeign() []specs.Arch { return nil }
