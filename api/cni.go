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
	h := cniHandler{network}
	routes := map[string]http.Handler{}
	for verb, f := range map[string]func(context.Context, cniCall) (types.Result, error){
		shim.Add: h.add, shim.Del: h.del, shim.Check: h.check, shim.GC: h.collect, shim.Status: h.status,
	} {
		routes["POST "+shim.Call{Verb: verb}.Path()] = serveCNI(verb, f, log)
	}
	return routes
}

type cniHandler struct{ network PodNetwork }

// cniCall is one call with its network configuration read.
type cniCall struct {
	shim.Call
	conf cniConf
}

func serveCNI(verb string, f func(context.Context, cniCall) (types.Result, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, err := readCNI(verb, http.MaxBytesReader(w, r.Body, maxCall))
		var result types.Result
		if err == nil {
			result, err = f(r.Context(), call)
		}
		var body []byte
		if err == nil {
			body, err = encodeCNI(result, call.conf.CNIVersion)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			e := cniError(verb, err)
			e.CNIVersion = call.conf.CNIVersion
			log.WarnContext(r.Context(), "cni call failed", "verb", verb, "container", call.ContainerID, "code", e.Code, "err", err)
			body, _ = json.Marshal(e) // a struct of strings cannot fail
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
		_, _ = w.Write(body)
	})
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
	if err := json.Unmarshal(call.Config, &call.conf); err != nil {
		return call, &shim.Error{Code: shim.CodeDecode, Msg: "the network configuration cannot be read", Details: err.Error()}
	}
	return call, nil
}

// encodeCNI returns the result in the version of the configuration; a verb
// without a result prints nothing.
func encodeCNI(result types.Result, version string) ([]byte, error) {
	if result == nil {
		return nil, nil
	}
	converted, err := result.GetAsVersion(version)
	if err != nil {
		return nil, &shim.Error{Code: shim.CodeVersion, Msg: "the result has no form in CNI version " + version, Details: err.Error()}
	}
	return json.MarshalIndent(converted, "", "    ")
}

func (h cniHandler) add(ctx context.Context, call cniCall) (types.Result, error) {
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
	return appendResult(prev, res, call.conf.dns()), nil
}

func (h cniHandler) del(ctx context.Context, call cniCall) (types.Result, error) {
	return nil, h.network.Detach(ctx, call.key())
}

func (h cniHandler) check(ctx context.Context, call cniCall) (types.Result, error) {
	prev, err := call.conf.prevResult()
	if err != nil {
		return nil, err
	}
	if prev == nil {
		return nil, &shim.Error{Code: shim.CodeConfig, Msg: "CHECK needs prevResult in the network configuration"}
	}
	addrs, err := addrsOf(prev, call.IfName, call.NetNS)
	if err != nil {
		return nil, err
	}
	return nil, h.network.Check(ctx, cni.Request{Key: call.key(), NetNS: call.NetNS, Addrs: addrs})
}

func (h cniHandler) collect(ctx context.Context, call cniCall) (types.Result, error) {
	valid, err := call.conf.validAttachments()
	if err != nil {
		return nil, err
	}
	return nil, h.network.Collect(ctx, call.conf.Name, valid)
}

// status also fails when every address is in use, as the specification has it
// (section STATUS: "if those resources are exhausted").
func (h cniHandler) status(ctx context.Context, _ cniCall) (types.Result, error) {
	return nil, errors.Join(h.network.Status(ctx), h.network.Capacity())
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
