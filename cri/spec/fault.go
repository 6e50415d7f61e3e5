// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// faults collects what is wrong with an Input, so that all of it is reported at once. Each text begins with the CRI field.
type faults []error

// invalid records a field whose value can never be right.
func (f *faults) invalid(field, format string, args ...any) {
	f.add(field, errdefs.ErrInvalidArgument, format, args...)
}

// unable records a field that is right in itself but that this host, handler or pod cannot honour.
func (f *faults) unable(field, format string, args ...any) {
	f.add(field, errdefs.ErrFailedPrecondition, format, args...)
}

func (f *faults) add(field string, kind error, format string, args ...any) {
	*f = append(*f, fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), kind))
}

// err is nil, the only fault, or all of them in one line (the text ends up in a gRPC status and in a pod's events).
func (f faults) err() error {
	switch len(f) {
	case 0:
		return nil
	case 1:
		return f[0]
	}
	return joined(f)
}

type joined []error

func (j joined) Error() string {
	texts := make([]string, len(j))
	for i, err := range j {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (j joined) Unwrap() []error { return j }
