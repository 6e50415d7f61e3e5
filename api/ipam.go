// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/ipam"
)

// Addresses is what the API shows of the pods' addresses.
type Addresses interface {
	Usage() []ipam.Usage
	Leases() []ipam.Lease
	List() []cni.Attachment
	Verify(ctx context.Context) ([]cni.Problem, error)
}

var _ Addresses = (*cni.Network)(nil)

// IPAM is the answer of GET /v1/ipam.
type IPAM struct {
	// Ranges are sorted by pool.
	Ranges []ipam.Usage `json:"ranges"`
	// Leases are sorted by address.
	Leases []Lease `json:"leases"`
}

// Lease is an address with the pod that has it.
type Lease struct {
	ipam.Lease
	// Namespace and Name of the pod; empty for a slot that waits for one, and
	// under a runtime that does not say.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// State of the attachment: pending, warm, ready or deleting.
	State string `json:"state"`
	// Interface is the host end of the pod's link.
	Interface string `json:"interface"`
}

// AttachmentsAnswer is the answer of GET /v1/attachments.
type AttachmentsAnswer struct {
	Attachments []cni.Attachment `json:"attachments"`
}

// VerifyAnswer is the answer of GET /v1/ipam/check.
type VerifyAnswer struct {
	// Problems is empty if everything agrees.
	Problems []cni.Problem `json:"problems"`
}

// NetworkRoutes returns the handlers that show the pod network.
func NetworkRoutes(a Addresses) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/ipam": JSON(func(*http.Request) (IPAM, error) { return showIPAM(a), nil }),
		"GET /v1/attachments": JSON(func(*http.Request) (AttachmentsAnswer, error) {
			return AttachmentsAnswer{a.List()}, nil
		}),
		"GET /v1/ipam/check": JSON(func(r *http.Request) (VerifyAnswer, error) {
			problems, err := a.Verify(r.Context())
			return VerifyAnswer{problems}, err
		}),
	}
}

func showIPAM(a Addresses) IPAM {
	owners := map[string]cni.Attachment{}
	for _, at := range a.List() {
		owners[at.String()] = at
	}
	out := IPAM{Ranges: a.Usage(), Leases: []Lease{}}
	for _, l := range a.Leases() {
		at := owners[l.Owner]
		out.Leases = append(out.Leases, Lease{l, at.Pod.Namespace, at.Pod.Name, at.State, at.HostIfName})
	}
	return out
}
