// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/csi/volume"
)

// findingView is one thing that fsck does not like.
type findingView struct {
	Pool    string `json:"pool"`
	Object  string `json:"object"`
	Problem string `json:"problem"`
	Fixed   bool   `json:"fixed"`
}

// transferred is one line of a transfer's answer: how far it is, or how it ended.
type transferred struct {
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	End   bool   `json:"end,omitempty"`
	ID    string `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
}

// volumeRoutes are the calls about volumes.
func volumeRoutes(m *volume.Manager) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/volumes": api.JSON(listVolumes(m)),
		"POST /v1/volumes/fsck": api.JSON(func(r *http.Request) ([]findingView, error) {
			out := []findingView{}
			for _, f := range m.Fsck(r.Context(), r.URL.Query().Get("repair") == "true") {
				out = append(out, findingView(f))
			}
			return out, nil
		}),
		"GET /v1/volumes/export": transfer(func(ctx context.Context, q url.Values, progress volume.Progress) (string, error) {
			return q.Get("id"), m.Export(ctx, q.Get("id"), q.Get("path"), progress)
		}),
		"GET /v1/volumes/import": transfer(func(ctx context.Context, q url.Values, progress volume.Progress) (string, error) {
			req := volume.CreateRequest{Name: q.Get("name"), Parameters: map[string]string{}}
			if pool := q.Get("pool"); pool != "" {
				req.Parameters["pool"] = pool
			}
			v, err := m.Import(ctx, req, q.Get("path"), progress)
			return v.ID, err
		}),
	}
}

// transfer answers with a line of JSON now and then, and a last one with End.
func transfer(do func(context.Context, url.Values, volume.Progress) (string, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		enc, out := json.NewEncoder(w), http.NewResponseController(w)
		id, err := do(r.Context(), r.URL.Query(), func(done, total int64) error {
			return errors.Join(enc.Encode(transferred{Done: done, Total: total}), out.Flush())
		})
		last := transferred{End: true, ID: id}
		if err != nil {
			last.Error = err.Error()
		}
		_ = enc.Encode(last)
	})
}

func fsckCommand() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use: "fsck", Short: "Compare records, data and kernel; with --repair, remove what is certainly garbage", Args: noArgs,
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "remove trash, half-made objects and devices that nobody staged; never a volume's data")
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var found []findingView
		if err := client(cmd).Post(cmd.Context(), "/v1/volumes/fsck?repair="+strconv.FormatBool(repair), nil, &found); err != nil {
			return err
		}
		t, open := &table{header: []string{"POOL", "OBJECT", "PROBLEM", "FIXED"}}, 0
		for _, f := range found {
			t.add(f.Pool, f.Object, f.Problem, strconv.FormatBool(f.Fixed))
			if !f.Fixed {
				open++
			}
		}
		if err := render(cmd.OutOrStdout(), *format, found, t); err != nil {
			return err
		}
		if open > 0 {
			return errUnhealthy
		}
		return nil
	}
	return cmd
}

func exportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "export ID FILE", Short: "Write a volume's or snapshot's bytes to a new file, sparse", Args: exactly(2, "an id and a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runTransfer(cmd, "export", args[1], url.Values{"id": {args[0]}})
		},
	}
}

func importCommand() *cobra.Command {
	var name, pool string
	cmd := &cobra.Command{
		Use: "import FILE --name NAME", Short: "Make a volume from a raw image", Args: exactly(1, "a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				return fmt.Errorf("%w: --name is needed: the volume's name", errUsage)
			}
			return runTransfer(cmd, "import", args[0], url.Values{"name": {name}, "pool": {pool}})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the new volume")
	cmd.Flags().StringVar(&pool, "pool", "", "pool of the new volume; empty: the first that suits")
	return cmd
}

// exactly wants n arguments, and says which.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("%w: %s takes %s", errUsage, cmd.CommandPath(), what)
		}
		return nil
	}
}

// runTransfer asks for a transfer and draws its progress.
func runTransfer(cmd *cobra.Command, verb, file string, q url.Values) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	q.Set("path", path)
	body, err := client(cmd).Stream(cmd.Context(), "/v1/volumes/"+verb+"?"+q.Encode())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	progress := progressTo(cmd.ErrOrStderr())
	dec := json.NewDecoder(body)
	for {
		var line transferred
		if err := dec.Decode(&line); err != nil {
			return fmt.Errorf("%s: the daemon ended before it was done: %w", verb, err)
		}
		if !line.End {
			drawBar(progress, line.Done, line.Total, units.BytesSize(float64(line.Done))+" of "+units.BytesSize(float64(line.Total)))
			continue
		}
		clearBar(progress)
		if line.Error != "" {
			return errors.New(line.Error)
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), line.ID)
		return err
	}
}
