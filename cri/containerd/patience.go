// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// patience is how long a call waits for a containerd that is away, as while it
// is restarted. A call that fails at once costs its pod the kubelet's back-off.
const patience = 10 * time.Second

// dialOptions make calls wait, and connect soon again: gRPC's own pause between two
// tries grows to as much as containerd's client allows a connection to take.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: .2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: patience,
		}),
		grpc.WithChainUnaryInterceptor(waitUnary), grpc.WithChainStreamInterceptor(waitStream),
	}
}

//nolint:revive // argument-limit: the interceptor's signature
func waitUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := connected(ctx, cc); err != nil {
		return err
	}
	return call(ctx, method, req, reply, cc, opts...)
}

//nolint:revive // argument-limit: the interceptor's signature
func waitStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := connected(ctx, cc); err != nil {
		return nil, err
	}
	return open(ctx, desc, cc, method, opts...)
}

// connected returns when the connection stands. A call that it lets through may
// still break; nothing is sent twice.
func connected(ctx context.Context, cc *grpc.ClientConn) error {
	if cc.GetState() == connectivity.Ready {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		state := cc.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return status.Error(codes.Unavailable, "the connection to containerd is closed")
		case connectivity.Idle, connectivity.Connecting, connectivity.TransientFailure:
			cc.Connect()
		}
		if !cc.WaitForStateChange(ctx, state) {
			return status.Error(codes.Unavailable, fmt.Sprintf("containerd does not answer, state of the connection %s", state))
		}
	}
}
