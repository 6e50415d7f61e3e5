// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/nodeagent/nodeagent/dataplane/attach"
)

// bpfFeatures asks the kernel for each thing that the data path uses, and says
// what the lack of one costs.
func (o Options) bpfFeatures(context.Context) []Finding {
	return judge(attach.Features(), attach.Feature.Probe)
}

func judge(features []attach.Feature, probe func(attach.Feature) error) []Finding {
	const check = "bpf features"
	var out []Finding
	for _, f := range features {
		err := probe(f)
		switch {
		case err == nil:
		case errors.Is(err, attach.ErrLacking) && f.Needed:
			out = append(out, Finding{check, Fail, "no " + f.Name, f.Lack + "; use Linux " + OldestKernel + " or newer"})
		case errors.Is(err, attach.ErrLacking):
			out = append(out, Finding{check, Warn, "no " + f.Name, f.Lack})
		case errors.Is(err, os.ErrPermission):
			return one(check, Warn, "the kernel may not be asked: "+err.Error(), "run as root")
		default:
			out = append(out, Finding{check, Warn, f.Name + ": " + err.Error(), f.Lack})
		}
	}
	if len(out) == 0 {
		return one(check, OK, fmt.Sprintf("all %d that the data path uses", len(features)), "")
	}
	return out
}
