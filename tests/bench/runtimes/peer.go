// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// maxMessage is the size of the largest answer, in bytes; the kubelet's own.
const maxMessage = 16 << 20

// peer is one CRI runtime under measurement.
type peer struct {
	name   string
	socket string
	// handler is the runtime handler of its pods; empty is the default.
	handler string
	// box is the node it runs in; nil: on the machine itself, and then neither
	// memory nor CPU time are measured.
	box *lab.Box

	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// path is a path of the peer as the machine sees it.
func (p *peer) path(path string) string {
	if p.box == nil {
		return path
	}
	return p.box.Path(path)
}

// cgroup is the parent of the pods' cgroups.
func (p *peer) cgroup() string {
	if p.box == nil {
		return "/bench"
	}
	return "/" + p.box.Group + "/pods"
}

func (p *peer) connect(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+p.path(p.socket),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.name, err)
	}
	p.runtime = runtimeapi.NewRuntimeServiceClient(conn)
	p.images = runtimeapi.NewImageServiceClient(conn)
	if _, err := p.runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		return errors.Join(fmt.Errorf("ask %s for its version: %w", p.name, err), conn.Close())
	}
	p.conn = conn
	return nil
}

// pull pulls an image and says how long it took.
func (p *peer) pull(ctx context.Context, ref string) (time.Duration, error) {
	begin := time.Now()
	_, err := p.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return 0, fmt.Errorf("%s: pull %s: %w", p.name, ref, err)
	}
	return time.Since(begin), nil
}

func (p *peer) remove(ctx context.Context, ref string) error {
	_, err := p.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("%s: remove %s: %w", p.name, ref, err)
	}
	return nil
}
