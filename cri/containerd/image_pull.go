// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pull says what to pull and how.
type Pull struct {
	// Ref is the full reference: host, repository and a tag or digest.
	Ref string
	// Snapshotter unpacks the layers.
	Snapshotter string
	// Labels of the image record.
	Labels map[string]string
	// HostsDir is the root of the registries' hosts.toml files.
	HostsDir string
	// Header is sent to every host that is asked, mirrors included.
	Header http.Header
	// Credentials returns a user and password for a host, or an empty user and
	// a refresh token, or nothing; nil means nothing.
	Credentials func(host string) (user, secret string, err error)
	// Lease is the id of the lease that keeps fetched parts from containerd's
	// collector; empty means that a failed pull leaves nothing.
	Lease string
	// Progress is told what happens, from one goroutine; nil means nobody.
	Progress func(PullEvent)
}

// PullEvent is one step of a pull, as containerd's transfer service tells it.
type PullEvent struct {
	// Event is "waiting", "downloading", "complete", "already exists",
	// "extracting", "extracted", "saved" or a sentence without Digest.
	Event    string
	Desc     *ocispec.Descriptor
	Progress int64
	Total    int64
}

// PullImage lets containerd fetch, verify and unpack an image and returns its
// record. The bytes do not pass through this process. What a failed pull has
// fetched is used by the next one, as long as its lease lives.
func (c *Client) PullImage(ctx context.Context, p Pull) (ImageRecord, error) {
	if c.c == nil {
		return ImageRecord{}, ErrNotConnected
	}
	if p.Lease != "" {
		ctx = leases.WithLease(ctx, p.Lease)
	}
	err := c.transfer(ctx, p, true)
	separately := err != nil && strings.Contains(err.Error(), noUnpacker)
	if separately {
		err = c.transfer(ctx, p, false)
	}
	if refusesParts(err) {
		if err = c.fetchWhole(ctx, p); err == nil {
			err = c.transfer(ctx, p, !separately)
		}
	}
	if err != nil {
		return ImageRecord{}, err
	}
	rec, err := c.ImageRecord(ctx, p.Ref)
	if err == nil && separately {
		err = c.UnpackImage(ctx, rec, p.Snapshotter)
	}
	return rec, err
}

// noUnpacker is how the transfer service says that its configuration
// (unpack_config) does not name the snapshotter. It has no error kind of its own.
const noUnpacker = "no unpack platforms defined"

// transfer makes one call of the transfer service.
func (c *Client) transfer(ctx context.Context, p Pull, unpack bool) error {
	src, err := registry.NewOCIRegistry(ctx, p.Ref,
		registry.WithCredentials(credentials(p.Credentials)),
		registry.WithHostDir(p.HostsDir),
		registry.WithHeaders(p.Header),
	)
	if err != nil {
		return fmt.Errorf("prepare registry for %s: %w", p.Ref, err)
	}
	platform := platforms.DefaultSpec()
	opts := []transferimage.StoreOpt{
		transferimage.WithPlatforms(platform),
		transferimage.WithImageLabels(maps.Clone(p.Labels)),
	}
	if unpack {
		opts = append(opts, transferimage.WithUnpack(platform, p.Snapshotter))
	}
	var topts []transfer.Opt
	if p.Progress != nil {
		topts = append(topts, transfer.WithProgress(func(t transfer.Progress) {
			p.Progress(PullEvent{Event: t.Event, Desc: t.Desc, Progress: t.Progress, Total: t.Total})
		}))
	}
	return c.c.Transfer(ctx, src, transferimage.NewStore(p.Ref, opts...), topts...)
}

// credentials adapts a function to what the transfer service asks.
type credentials func(host string) (user, secret string, err error)

var _ registry.CredentialHelper = credentials(nil)

// GetCredentials implements registry.CredentialHelper. An error must become an
// empty answer: the service's stream has no other, and would wait for ever.
func (f credentials) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	none := registry.Credentials{Host: host}
	if f == nil {
		return none, nil
	}
	user, secret, err := f(host)
	if err != nil {
		return none, nil //nolint:nilerr // see above
	}
	return registry.Credentials{Host: host, Username: user, Secret: secret}, nil
}
