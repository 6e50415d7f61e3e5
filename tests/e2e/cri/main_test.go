// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// The node that is tested, and its services.
var (
	node   *cluster.Node
	rs     runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient
	// cgroupParent is the pods' cgroup, in the words of cgroupDriver, the runtime's.
	cgroupParent = "/pods"
	cgroupDriver = runtimeapi.CgroupDriver_CGROUPFS
)

func TestMain(m *testing.M) {
	if cluster.Init() {
		return
	}
	os.Exit(run(m)) //nolint:forbidigo // a test program's main
}

func run(m *testing.M) int {
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		fmt.Println("NODEAGENT_SKIP_ROOT=1: no node, nothing to test")
		return 0
	}
	ctx := context.Background()
	if os.Getenv("NODEAGENT_E2E_HERE") == "1" {
		return here(ctx, m)
	}
	cfg := cluster.Default()
	cfg.Name, cfg.Bin, cfg.Progress = "e2e-cri", "../../../bin", cluster.NewProgress(os.Stderr)
	if r := os.Getenv("NODEAGENT_E2E_RUNTIME"); r != "" {
		cfg.Runtime = r
	}
	c, err := cluster.Alone(ctx, cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the node:", err)
		return 1
	}
	node = c.Nodes[0]
	code, err := test(ctx, m)
	traces, traceErr := c.Traces()
	err = errors.Join(err, traceErr, c.Down(ctx))
	if traces != nil {
		err = errors.Join(err, traces.Left(ctx))
	}
	if err != nil {
		fmt.Println("--- FAIL: nothing is left")
		fmt.Println(err)
		return 1
	}
	return code
}

// here runs the tests on the machine's own runtime, which systemd gives cgroups.
func here(ctx context.Context, m *testing.M) int {
	var err error
	if node, err = cluster.Here(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cgroupParent, cgroupDriver = "pods.slice", runtimeapi.CgroupDriver_SYSTEMD
	code, err := test(ctx, m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func test(ctx context.Context, m *testing.M) (code int, retErr error) {
	conn, err := dial()
	if err != nil {
		return 1, err
	}
	defer func() { retErr = errors.Join(retErr, conn.Close()) }()
	rs, images = runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
	if err := pull(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///cri", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return node.DialUnix(ctx, node.CRISocket()) }))
}

// pull waits until the runtime has recovered and pulls what the tests run.
func pull(ctx context.Context) error {
	calm, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := cluster.WaitFor(calm, func(ctx context.Context) error {
		_, err := rs.Status(ctx, &runtimeapi.StatusRequest{})
		return err
	}); err != nil {
		return err
	}
	for _, ref := range []string{cluster.BusyboxImage, cluster.WebImage} {
		if _, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			return err
		}
	}
	return nil
}

// onNodeagent says whether the runtime is the one that this repository makes.
func onNodeagent() bool { return os.Getenv("NODEAGENT_E2E_RUNTIME") == "" }
