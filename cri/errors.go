// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// grpcError is the only place where an error gets its gRPC code. The message
// stays as it is, except that the kubelet recognizes some errors by how they
// begin, and those get their words first.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	for _, first := range []error{
		crierrors.ErrImageVolumeMountFailed, crierrors.ErrRROUnsupported,
		crierrors.ErrRegistryUnavailable, crierrors.ErrSignatureValidationFailed,
	} {
		if errors.Is(err, first) && !strings.HasPrefix(status.Convert(err).Message(), first.Error()) {
			return status.Error(code(err), first.Error()+": "+err.Error())
		}
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return status.Error(s.Code(), err.Error())
	}
	return status.Error(code(err), err.Error())
}

func code(err error) codes.Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errdefs.IsDeadlineExceeded(err):
		return codes.DeadlineExceeded
	case errdefs.IsNotFound(err):
		return codes.NotFound
	case errdefs.IsInvalidArgument(err):
		return codes.InvalidArgument
	case errdefs.IsAlreadyExists(err):
		return codes.AlreadyExists
	case errdefs.IsFailedPrecondition(err):
		return codes.FailedPrecondition
	case errdefs.IsUnavailable(err):
		return codes.Unavailable
	case errors.Is(err, context.Canceled), errdefs.IsCanceled(err):
		return codes.Canceled
	case errdefs.IsNotImplemented(err):
		return codes.Unimplemented
	case errdefs.IsResourceExhausted(err):
		return codes.ResourceExhausted
	case errdefs.IsOutOfRange(err):
		return codes.OutOfRange
	case errdefs.IsPermissionDenied(err):
		return codes.PermissionDenied
	case errdefs.IsInternal(err), errdefs.IsDataLoss(err):
		return codes.Internal
	}
	return codes.Unknown
}
