// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cri/image"
)

// imageView is one image as `nodeagent images` shows it.
type imageView struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags,omitempty"`
	Digests []string `json:"digests,omitempty"`
	Bytes   uint64   `json:"bytes"`
	Pinned  bool     `json:"pinned,omitempty"`
}

// imageRoutes are the calls about images: the list, the pulls with their
// progress, and a pull that somebody asks for by hand.
func imageRoutes(s *image.Service) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/images": api.JSON(func(r *http.Request) ([]imageView, error) {
			list, err := s.ListImages(r.Context(), &runtimeapi.ListImagesRequest{})
			if err != nil {
				return nil, err
			}
			out := make([]imageView, 0, len(list.Images))
			for _, i := range list.Images {
				out = append(out, imageView{ID: i.Id, Tags: i.RepoTags, Digests: i.RepoDigests, Bytes: i.Size, Pinned: i.Pinned})
			}
			slices.SortFunc(out, func(a, b imageView) int { return strings.Compare(a.name(), b.name()) })
			return out, nil
		}),
		"GET /v1/images/pulls": api.JSON(func(*http.Request) ([]image.Progress, error) { return s.Pulls(), nil }),
		"POST /v1/images/pull": api.JSON(func(r *http.Request) (pulledImage, error) {
			ref := r.URL.Query().Get("ref")
			resp, err := s.PullImage(r.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
			return pulledImage{ID: resp.GetImageRef()}, err
		}),
	}
}

// pulledImage is the answer of POST /v1/images/pull.
type pulledImage struct {
	ID string `json:"id"`
}

func (i imageView) name() string {
	if len(i.Tags) > 0 {
		return i.Tags[0]
	}
	if len(i.Digests) > 0 {
		return i.Digests[0]
	}
	return i.ID
}

func imagesCommand() *cobra.Command {
	cmd := showCommand("images", "List images and pull them", "/v1/images", func(images []imageView) *table {
		t := &table{header: []string{"IMAGE", "ID", "SIZE", "PINNED"}}
		for _, i := range images {
			pinned := ""
			if i.Pinned {
				pinned = "yes"
			}
			t.add(i.name(), short(strings.TrimPrefix(i.ID, "sha256:")), units.HumanSize(float64(i.Bytes)), pinned)
		}
		return t
	})
	pull := &cobra.Command{
		Use: "pull IMAGE", Short: "Pull an image and show how far it is",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("%w: %s takes one image", errUsage, cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return pullImage(cmd.Context(), client(cmd), args[0], cmd.OutOrStdout(), progressTo(cmd.ErrOrStderr()))
		},
	}
	cmd.AddCommand(pull, showCommand("pulls", "Show pulls under way and recent ones", "/v1/images/pulls", pullsTable))
	return cmd
}

func pullsTable(pulls []image.Progress) *table {
	t := &table{header: []string{"IMAGE", "STAGE", "DONE", "OF", "PERCENT", "SPEED", "ETA", "ATTEMPTS", "ERROR"}}
	for _, p := range pulls {
		t.add(p.Ref, p.Stage, units.HumanSize(float64(p.Fetched)), units.HumanSize(float64(p.Total)),
			fmt.Sprintf("%.0f%%", p.Percent), units.HumanSize(float64(p.BytesPerSecond))+"/s",
			p.ETA.Round(time.Second).String(), fmt.Sprint(p.Attempts), p.Error)
	}
	return t
}

// barInterval is how often the bar is drawn.
const barInterval = 200 * time.Millisecond

// pullImage asks the daemon to pull and draws a bar on progress until it has.
func pullImage(ctx context.Context, c *api.Client, ref string, out, progress io.Writer) error {
	var pulled pulledImage
	done := make(chan error, 1)
	go func() { done <- c.Post(ctx, "/v1/images/pull?ref="+url.QueryEscape(ref), nil, &pulled) }()
	tick := time.NewTicker(barInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			clearBar(progress)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(out, pulled.ID)
			return err
		case <-tick.C:
			drawPull(ctx, c, ref, progress)
		}
	}
}

// drawPull draws the pull that is under way; what cannot be asked is not drawn.
func drawPull(ctx context.Context, c *api.Client, ref string, w io.Writer) {
	var pulls []image.Progress
	if c.Get(ctx, "/v1/images/pulls", &pulls) != nil {
		return
	}
	for _, p := range pulls {
		if !p.Ended.IsZero() || !strings.HasSuffix(p.Ref, ref) && !strings.Contains(p.Ref, ref) {
			continue
		}
		drawBar(w, p.Fetched, p.Total, fmt.Sprintf("%3.0f%%  %s of %s  %s/s  %s", p.Percent, units.HumanSize(float64(p.Fetched)),
			units.HumanSize(float64(p.Total)), units.HumanSize(float64(p.BytesPerSecond)), p.Stage))
		return
	}
}
