// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// validate reports what is wrong with a request apart from what the OCI spec is
// built from, which cri/spec judges.
func validate(cfg *runtimeapi.ContainerConfig) error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument))
	}
	if cfg == nil {
		bad("config", "is missing")
		return errors.Join(errs...)
	}
	if cfg.GetMetadata().GetName() == "" {
		bad("metadata.name", "is empty")
	}
	if cfg.GetImage().GetImage() == "" {
		bad("image.image", "is empty")
	}
	if p := cfg.GetLogPath(); p != "" && (!filepath.IsLocal(p) || strings.ContainsRune(p, 0)) {
		bad("log_path", "%q is not a path below the pod's log directory", p)
	}
	return errors.Join(errs...)
}
