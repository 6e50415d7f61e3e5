// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// A containerd that fetches a layer in parts begins with a request for
// "bytes=0-". Registries may ignore that, and containerd sees to it; some answer
// 416, and containerd gives up. What such a registry has is fetched from here, by
// one request for the whole of each part, and containerd finds it there.

// wholesAtOnce is how many parts of an image are fetched at a time.
const wholesAtOnce = 3

// refusesParts says whether an error is that of a registry which answers no requests for ranges.
func refusesParts(err error) bool {
	return err != nil && strings.Contains(err.Error(), "416 Requested Range Not Satisfiable")
}

// fetchWhole fetches the parts of an image that are not there yet without asking for ranges.
func (c *Client) fetchWhole(ctx context.Context, p Pull) error {
	hosts := config.HostOptions{}
	if p.HostsDir != "" {
		hosts.HostDir = config.HostDirFromRoot(p.HostsDir)
	}
	if p.Credentials != nil {
		hosts.Credentials = p.Credentials
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Headers: p.Header, Hosts: config.ConfigureHosts(ctx, hosts)})
	name, target, err := resolver.Resolve(ctx, p.Ref)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", p.Ref, err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return fmt.Errorf("prepare registry for %s: %w", p.Ref, err)
	}
	store, platform := c.c.ContentStore(), platforms.Default()
	children := images.LimitManifests(images.FilterPlatforms(images.ChildrenHandler(store), platform), platform, 1)
	handler := images.Handlers(remotes.FetchHandler(store, &wholeFetcher{Fetcher: fetcher, progress: p.Progress}), children)
	if err := images.Dispatch(ctx, handler, semaphore.NewWeighted(wholesAtOnce), target); err != nil {
		return fmt.Errorf("fetch %s: %w", p.Ref, err)
	}
	return nil
}

// wholeFetcher fetches parts from their beginning and tells how far it is.
type wholeFetcher struct {
	remotes.Fetcher

	// mu is held while progress, which may be nil, is told.
	mu       sync.Mutex
	progress func(PullEvent)
}

var _ remotes.Fetcher = (*wholeFetcher)(nil)

// Fetch implements remotes.Fetcher. Its reader cannot seek: what a broken
// download has left is read over, for a range would be refused.
func (f *wholeFetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := f.Fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	return &wholeReader{ReadCloser: body, fetcher: f, desc: desc}, nil
}

type wholeReader struct {
	io.ReadCloser

	fetcher *wholeFetcher
	desc    ocispec.Descriptor
	read    int64
}

func (r *wholeReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.read += int64(n)
	if r.fetcher.progress != nil {
		r.fetcher.mu.Lock()
		defer r.fetcher.mu.Unlock()
		r.fetcher.progress(PullEvent{Event: "downloading", Desc: &r.desc, Progress: r.read, Total: r.desc.Size})
	}
	return n, err
}
