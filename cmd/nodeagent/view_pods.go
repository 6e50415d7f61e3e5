// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
)

// podView is one sandbox as `nodeagent pods` shows it.
type podView struct {
	Namespace  string          `json:"namespace"`
	Name       string          `json:"name"`
	UID        string          `json:"uid"`
	ID         string          `json:"id"`
	State      string          `json:"state"`
	Handler    string          `json:"handler,omitempty"`
	Created    time.Time       `json:"created"`
	Addrs      []string        `json:"addrs,omitempty"`
	Containers []containerView `json:"containers"`
}

// containerView is one container of a pod.
type containerView struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	State   string `json:"state"`
	Attempt uint32 `json:"attempt"`
	Image   string `json:"image"`
}

// listPods answers GET /v1/pods.
func listPods(s *cri.Server) func(*http.Request) ([]podView, error) {
	return func(r *http.Request) ([]podView, error) {
		containers, err := containersByPod(r.Context(), s)
		if err != nil {
			return nil, err
		}
		list, err := s.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return nil, err
		}
		out := make([]podView, 0, len(list.Items))
		for _, sb := range list.Items {
			v := podView{
				Namespace: sb.Metadata.Namespace, Name: sb.Metadata.Name, UID: sb.Metadata.Uid, ID: sb.Id,
				State: word(sb.State.String()), Handler: sb.RuntimeHandler, Created: time.Unix(0, sb.CreatedAt),
				Containers: containers[sb.Id],
			}
			st, err := s.PodSandboxStatus(r.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb.Id})
			if err == nil { // it may have gone since
				v.Addrs = podAddrs(st.GetStatus().GetNetwork())
			}
			out = append(out, v)
		}
		slices.SortFunc(out, func(a, b podView) int {
			return strings.Compare(a.Namespace+"/"+a.Name+a.ID, b.Namespace+"/"+b.Name+b.ID)
		})
		return out, nil
	}
}

func containersByPod(ctx context.Context, s *cri.Server) (map[string][]containerView, error) {
	list, err := s.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string][]containerView{}
	for _, c := range list.Containers {
		out[c.PodSandboxId] = append(out[c.PodSandboxId], containerView{
			Name: c.Metadata.Name, ID: c.Id, State: word(c.State.String()), Attempt: c.Metadata.Attempt,
			Image: c.GetImage().GetUserSpecifiedImage(),
		})
	}
	return out, nil
}

func podAddrs(n *runtimeapi.PodSandboxNetworkStatus) []string {
	if n.GetIp() == "" {
		return nil
	}
	out := []string{n.Ip}
	for _, a := range n.AdditionalIps {
		out = append(out, a.Ip)
	}
	return out
}

// word turns an enum such as CONTAINER_RUNNING into "running".
func word(enum string) string {
	_, last, _ := strings.Cut(enum, "_")
	return strings.ToLower(last)
}

func podsCommand() *cobra.Command {
	return showCommand("pods", "List the pods of this node", "/v1/pods", func(pods []podView) *table {
		t := &table{header: []string{"NAMESPACE", "NAME", "STATE", "AGE", "ADDRESSES", "CONTAINERS", "ID"}}
		for _, p := range pods {
			running := 0
			for _, c := range p.Containers {
				if c.State == "running" {
					running++
				}
			}
			t.add(p.Namespace, p.Name, p.State, age(p.Created), strings.Join(p.Addrs, ","),
				strconv.Itoa(running)+"/"+strconv.Itoa(len(p.Containers))+" running", short(p.ID))
		}
		return t
	})
}

// age prints how long ago a moment was, to two units.
func age(since time.Time) string {
	d := time.Since(since).Round(time.Second)
	switch {
	case d >= 48*time.Hour:
		return strconv.Itoa(int(d.Hours()/24)) + "d"
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return d.String()
	}
}

// short is the part of an id that people use; every verb takes it.
func short(id string) string { return id[:min(13, len(id))] }

// showCommand makes a command that prints the answer of one GET.
func showCommand[T any](use, shortHelp, path string, toTable func(T) *table) *cobra.Command {
	return showPartCommand(use, shortHelp, path, func(v T) (any, *table) { return v, toTable(v) })
}

// showPartCommand shows a part of an answer, which is all that scripts see too.
func showPartCommand[T any](use, shortHelp, path string, part func(T) (any, *table)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: shortHelp, Args: noArgs}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var v T
		if err := client(cmd).Get(cmd.Context(), path, &v); err != nil {
			return err
		}
		shown, t := part(v)
		return render(cmd.OutOrStdout(), *format, shown, t)
	}
	return cmd
}
