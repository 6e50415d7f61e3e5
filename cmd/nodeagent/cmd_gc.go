// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/csi/volume"
)

// garbage is something that nobody needs any more.
type garbage struct {
	// Kind is "image", "volume" or "network".
	Kind   string `json:"kind"`
	Object string `json:"object"`
	Why    string `json:"why"`
	Bytes  uint64 `json:"bytes,omitempty"`
	// Removed: it is gone now. Otherwise Error says why it is not, if it was tried.
	Removed bool   `json:"removed"`
	Error   string `json:"error,omitempty"`
}

// gcRequest says what to do with garbage.
type gcRequest struct {
	dry    bool // only say what there is
	images bool // those that no container uses, too
}

// collector finds one room's garbage, and removes it unless it shall only be shown.
type collector struct {
	kind string
	find func(context.Context, gcRequest) ([]garbage, error)
}

// collect answers POST /v1/gc. A room that fails is an entry of its own: what the
// others removed has to be told.
func collect(rooms []collector) func(*http.Request) ([]garbage, error) {
	return func(r *http.Request) ([]garbage, error) {
		q := r.URL.Query()
		req := gcRequest{dry: q.Get("dryRun") == "true", images: q.Get("images") == "true"}
		out := []garbage{}
		for _, room := range rooms {
			found, err := room.find(r.Context(), req)
			out = append(out, found...)
			if err != nil {
				out = append(out, garbage{Kind: room.kind, Error: err.Error()})
			}
		}
		return out, nil
	}
}

// imageStore is as much of the CRI as its garbage takes.
type imageStore interface {
	ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error)
	RemoveImage(context.Context, *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error)
}

type containerLister interface {
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
}

// collectImages takes images that are neither pinned nor a container's, running
// or not. The kubelet does that by itself when the disk fills.
func collectImages(images imageStore, containers containerLister) collector {
	return collector{"image", func(ctx context.Context, req gcRequest) ([]garbage, error) {
		if !req.images {
			return nil, nil
		}
		// Images first: a container that is made meanwhile is among the containers then.
		list, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
		if err != nil {
			return nil, err
		}
		inUse, err := containers.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
		if err != nil {
			return nil, err
		}
		used := map[string]bool{}
		for _, c := range inUse.Containers {
			used[c.ImageId], used[c.ImageRef], used[c.GetImage().GetImage()] = true, true, true
		}
		var out []garbage
		for _, i := range list.Images {
			if i.Pinned || slices.ContainsFunc(slices.Concat([]string{i.Id}, i.RepoTags, i.RepoDigests), func(s string) bool { return used[s] }) {
				continue
			}
			v := imageView{ID: i.Id, Tags: i.RepoTags, Digests: i.RepoDigests}
			g := garbage{Kind: "image", Object: v.name(), Why: "no container uses it", Bytes: i.Size}
			if !req.dry {
				_, err := images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}})
				g.done(err)
			}
			out = append(out, g)
		}
		return out, nil
	}}
}

// collectVolumes takes what interrupted operations left in the pools.
func collectVolumes(m *volume.Manager) collector {
	return collector{"volume", func(ctx context.Context, req gcRequest) ([]garbage, error) {
		var out []garbage
		for _, f := range m.Fsck(ctx, !req.dry) {
			out = append(out, garbage{Kind: "volume", Object: strings.Trim(f.Pool+"/"+f.Object, "/"), Why: f.Problem, Removed: f.Fixed})
		}
		return out, nil
	}}
}

// collectNetwork looks at attachments and links: what the look before found
// without a pod goes, what only this one finds waits for the next.
func collectNetwork(n *cni.Network) collector {
	return collector{"network", func(ctx context.Context, req gcRequest) ([]garbage, error) {
		before := n.Suspects()
		if !req.dry {
			if err := n.Reconcile(ctx); err != nil {
				return nil, err
			}
		}
		var out []garbage
		for _, s := range n.Suspects() {
			gone := !req.dry && slices.Contains(before, s)
			why := "has no pod"
			if !gone {
				why = "has no pod; it goes if the next look finds it again"
			}
			out = append(out, garbage{Kind: "network", Object: s, Why: why, Removed: gone})
		}
		return out, nil
	}}
}

func (g *garbage) done(err error) {
	g.Removed = err == nil
	if err != nil {
		g.Error = err.Error()
	}
}

func gcCommand() *cobra.Command {
	var dry, images bool
	cmd := &cobra.Command{
		Use: "gc", Short: "Remove what nobody needs any more", Args: noArgs,
		Long: "Removes what interrupted operations left in the pools of volumes, and links and addresses without a pod: what the\n" +
			"daemon removes by itself in time. With --images also images that no container uses, running or not; pinned ones stay.\n" +
			"No volume and no snapshot is ever touched.",
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show it")
	cmd.Flags().BoolVar(&images, "images", false, "images that no container uses, too")
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := url.Values{"dryRun": {strconv.FormatBool(dry)}, "images": {strconv.FormatBool(images)}}
		var found []garbage
		if err := client(cmd).Post(cmd.Context(), "/v1/gc?"+q.Encode(), nil, &found); err != nil {
			return err
		}
		t, failed := garbageTable(found)
		if len(found) == 0 {
			t = &table{rows: [][]string{{"nothing to remove"}}}
		}
		if err := render(cmd.OutOrStdout(), *format, found, t); err != nil {
			return err
		}
		if failed > 0 {
			return fmt.Errorf("%d could not be removed", failed)
		}
		return nil
	}
	return cmd
}

func garbageTable(found []garbage) (t *table, failed int) {
	t = &table{header: []string{"KIND", "OBJECT", "SIZE", "REMOVED", "WHY"}}
	for _, g := range found {
		size, why := "", g.Why
		if g.Bytes > 0 {
			size = units.HumanSize(float64(g.Bytes))
		}
		if g.Error != "" {
			why, failed = g.Error, failed+1
		}
		t.add(g.Kind, g.Object, size, strconv.FormatBool(g.Removed), why)
	}
	return t, failed
}

// addCollector lets gc ask a room, too.
func (g *graph) addCollector(c collector) {
	g.collectors = append(g.collectors, c)
	g.routes["POST /v1/gc"] = api.JSON(collect(g.collectors))
}
