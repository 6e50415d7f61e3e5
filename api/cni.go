// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	types "github.com/containernetworking/cni/pkg/types"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// PodNetwork is what the CNI program asks of the pod network.
type PodNetwork interface {
	Attach(ctx context.Context, req cni.Request) (*cni.Result, error)
	Detach(ctx context.Context, k cni.Key) error
	Check(ctx context.Context, req cni.Request) error
	Collect(ctx context.Context, network string, valid []cni.Key) error
	Status(ctx context.Context) error
	// Capacity says if another pod can have addresses.
	Capacity() error
}

var _ PodNetwork = (*cni.Network)(nil)

// maxCall bounds a call: a network configuration with a large prevResult and
// all annotations of a pod (256 KiB at most).
const maxCall = 4 << 20

// CNIRoutes returns the handlers of the CNI program's calls, for Deps.Routes.
// The body of a success is what the program prints; that of a failure is an
// error as CNI has it.
func CNIRoutes(network PodNetwork, log *slog.Logger) map[string]http.Handler {
	h := cniHandler{network, log}
	routes := map[string]http.Handler{}
	for _, verb := range []string{shim.Add, shim.Del, shim.Check, shim.GC, shim.Status} {
		routes["POST "+shim.Call{Verb: verb}.Path()] = h.serve(verb)
	}
	return routes
}

// CNICall does calls of our plugin in this process, for chains of plugins that
// the CRI runs itself. It returns what the program would print.
func CNICall(network PodNetwork, log *slog.Logger) func(context.Context, shim.Call) ([]byte, error) {
	h := cniHandler{network, log}
	return func(ctx context.Context, c shim.Call) ([]byte, error) {
		call, err := parseConf(c)
		if err == nil {
			var body []byte
			if body, err = h.do(ctx, call); err == nil {
				return body, nil
			}
		}
		return nil, h.fail(ctx, call, err)
	}
}

type cniHandler struct {
	network PodNetwork
	log     *slog.Logger
}

// cniCall is one call with its network configuration read.
type cniCall struct {
	shim.Call
	conf cniConf
}

func (h cniHandler) serve(verb string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, err := readCNI(verb, http.MaxBytesReader(w, r.Body, maxCall))
		var body []byte
		if err == nil {
			body, err = h.do(r.Context(), call)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			call.Verb = verb
			body, _ = json.Marshal(h.fail(r.Context(), call, err)) // a struct of strings cannot fail
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
		_, _ = w.Write(body)
	})
}

// fail logs an error and makes it one of CNI.
func (h cniHandler) fail(ctx context.Context, call cniCall, err error) *shim.Error {
	e := cniError(call.Verb, err)
	e.CNIVersion = call.conf.CNIVersion
	h.log.WarnContext(ctx, "cni call failed", "verb", call.Verb, "container", call.ContainerID, "code", e.Code, "err", err)
	return e
}

// do does one call and returns what the program prints.
func (h cniHandler) do(ctx context.Context, call cniCall) ([]byte, error) {
	switch call.Verb {
	case shim.Add:
		return h.add(ctx, call)
	case shim.Del:
		return nil, h.network.Detach(ctx, call.key())
	case shim.Check:
		return nil, h.check(ctx, call)
	case shim.GC:
		return nil, h.collect(ctx, call)
	case shim.Status:
		// Also when every address is in use, as the specification has it (section
		// STATUS: "if those resources are exhausted").
		return nil, errors.Join(h.network.Status(ctx), h.network.Capacity())
	}
	return nil, &shim.Error{Code: shim.CodeEnvironment, Msg: "unknown verb " + call.Verb}
}

func readCNI(verb string, body io.Reader) (cniCall, error) {
	var call cniCall
	raw, err := io.ReadAll(body)
	if err != nil {
		return call, &shim.Error{Code: shim.CodeIO, Msg: "cannot read the call", Details: err.Error()}
	}
	if err := json.Unmarshal(raw, &call.Call); err != nil {
		return call, &shim.Error{Code: shim.CodeDecode, Msg: "the call is not valid JSON", Details: err.Error()}
	}
	if call.Verb != verb {
		return call, &shim.Error{Code: shim.CodeDecode, Msg: fmt.Sprintf("a call of %s was sent to %s", call.Verb, verb)}
	}
	return parseConf(call.Call)
}

func parseConf(c shim.Call) (cniCall, error) {
	call := cniCall{Call: c}
	if err := json.Unmarshal(call.Config, &call.conf); err != nil {
		return call, &shim.Error{Code: shim.CodeDecode, Msg: "the network configuration cannot be read", Details: err.Error()}
	}
	return call, nil
}

// encodeCNI returns the result in the version of the configuration.
func encodeCNI(result types.Result, version string) ([]byte, error) {
	converted, err := result.GetAsVersion(version)
	if err != nil {
		return nil, &shim.Error{Code: shim.CodeVersion, Msg: "the result has no form in CNI version " + version, Details: err.Error()}
	}
	return json.MarshalIndent(converted, "", "    ")
}

func (h cniHandler) add(ctx context.Context, call cniCall) ([]byte, error) {
	req, err := call.request()
	if err != nil {
		return nil, err
	}
	prev, err := call.conf.prevResult()
	if err != nil {
		return nil, err
	}
	res, err := h.network.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return encodeCNI(appendResult(prev, res, call.conf.dns()), call.conf.CNIVersion)
}

func (h cniHandler) check(ctx context.Context, call cniCall) error {
	prev, err := call.conf.prevResult()
	if err != nil {
		return err
	}
	if prev == nil {
		return &shim.Error{Code: shim.CodeConfig, Msg: "CHECK needs prevResult in the network configuration"}
	}
	addrs, err := addrsOf(prev, call.IfName, call.NetNS)
	if err != nil {
		return err
	}
	return h.network.Check(ctx, cni.Request{Key: call.key(), NetNS: call.NetNS, Addrs: addrs})
}

func (h cniHandler) collect(ctx context.Context, call cniCall) error {
	valid, err := call.conf.validAttachments()
	if err != nil {
		return err
	}
	return h.network.Collect(ctx, call.conf.Name, valid)
}

// appendResult adds an attachment to what plugins before this one in a chain
// made (nil: it is the first).
func appendResult(prev *cnitypes.Result, res *cni.Result, dns types.DNS) types.Result {
	out := prev
	if out == nil {
		out = &cnitypes.Result{CNIVersion: cnitypes.ImplementedSpecVersion}
	}
	out.Interfaces = append(out.Interfaces,
		&cnitypes.Interface{Name: res.HostIfName, Mac: res.HostMAC.String(), Mtu: res.MTU},
		&cnitypes.Interface{Name: res.IfName, Mac: res.MAC.String(), Mtu: res.MTU, Sandbox: res.NetNS})
	index := len(out.Interfaces) - 1
	for i, p := range res.Addrs {
		out.IPs = append(out.IPs, &cnitypes.IPConfig{
			Interface: new(index), Address: ipNet(p), Gateway: res.Gateways[i].AsSlice(),
		})
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(anywhere(p.Addr())), GW: res.Gateways[i].AsSlice()})
	}
	if out.DNS.IsEmpty() {
		out.DNS = dns
	}
	return out
}
