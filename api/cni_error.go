// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"os"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// cniError gives an error its code; nobody else does.
func cniError(verb string, err error) *shim.Error {
	if e, ok := errors.AsType[*shim.Error](err); ok {
		return e
	}
	unready := shim.CodeTryAgain
	if verb == shim.Status {
		unready = shim.CodeNotAvailable
	}
	for _, known := range []struct {
		is   error
		code int
		msg  string
	}{
		{cni.ErrNetNS, shim.CodeNetNS, "CNI_NETNS is not a pod's network namespace"},
		{os.ErrNotExist, shim.CodeNetNS, "CNI_NETNS does not exist"},
		{cni.ErrExhausted, unready, "no free address is left"},
		{cni.ErrNotReady, unready, "the pod network is not ready"},
		{cni.ErrInvalid, shim.CodeConfig, "the request cannot be served"},
		{cni.ErrUnknown, shim.CodeUnknown, "the container has no such interface of nodeagent"},
		{cni.ErrExists, shim.CodeExists, "the interface exists already"},
		{cni.ErrBroken, shim.CodeBroken, "the interface is not as it was made"},
		{context.DeadlineExceeded, shim.CodeTryAgain, "it took too long"},
		{context.Canceled, shim.CodeTryAgain, "the caller went away"},
	} {
		if errors.Is(err, known.is) {
			return &shim.Error{Code: known.code, Msg: known.msg, Details: err.Error()}
		}
	}
	return &shim.Error{Code: shim.CodeInternal, Msg: "internal error", Details: err.Error()}
}
