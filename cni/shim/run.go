// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
)

// Process is what the program got from the one that started it.
type Process struct {
	Getenv         func(string) string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Build says which program this is, for people who start it by hand.
	Build string
}

// How long the program waits for a daemon that is away. A restart takes about
// a second; an upgrade may take some more. DEL does not wait: what is written
// down is done before the next daemon serves.
const (
	addPatience = 15 * time.Second
	gcPatience  = 5 * time.Second
)

// Run does one call and returns the exit code.
func Run(p Process) int {
	if p.Getenv("CNI_COMMAND") == "" {
		_, _ = io.WriteString(p.Stderr, p.Build+"\nCNI protocol versions supported: "+strings.Join(Versions(), ", ")+"\n")
		return 1
	}
	out, err := run(p)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = fault(CodeInternal, err.Error(), "")
		}
		out, _ = json.MarshalIndent(e, "", "    ") // a struct of strings cannot fail
	}
	if _, werr := p.Stdout.Write(out); werr != nil || err != nil {
		return 1
	}
	return 0
}

func run(p Process) ([]byte, error) {
	if p.Getenv("CNI_COMMAND") == Version {
		return speakVersions(p.Stdin)
	}
	call, conf, err := read(p)
	if err != nil {
		return nil, err
	}
	body, err := ask(p, call, conf)
	if e, ok := errors.AsType[*Error](err); ok {
		e.CNIVersion = conf.CNIVersion
	}
	return body, err
}

// speakVersions answers VERSION: in the version of the question, if it has one.
func speakVersions(stdin io.Reader) ([]byte, error) {
	conf := Conf{CNIVersion: newestVersion}
	if raw, err := io.ReadAll(stdin); err == nil && len(raw) > 0 {
		if err := json.Unmarshal(raw, &conf); err != nil {
			return nil, fault(CodeDecode, "the question is not valid JSON", err.Error())
		}
	}
	return json.Marshal(map[string]any{"cniVersion": conf.CNIVersion, "supportedVersions": Versions()})
}

// ask sends the call, or does for it what can be done without the daemon.
func ask(p Process, call Call, conf Conf) ([]byte, error) {
	payload, err := json.Marshal(call)
	if err != nil {
		return nil, fault(CodeDecode, "the call cannot be encoded", err.Error())
	}
	d := daemon{socket: conf.Socket, trace: p.Getenv("TRACEPARENT"), path: call.Path(), payload: payload}
	switch call.Verb {
	case Del:
		return d.deleteOrQueue(Queue{Dir: conf.Queue}, call)
	case Status:
		body, err := d.exchange(0)
		if isAway(err) {
			return nil, fault(CodeNotAvailable, "the nodeagent daemon does not answer", err.Error())
		}
		return body, err
	}
	patience := gcPatience
	if call.Verb == Add {
		patience = addPatience
	}
	body, err := d.exchange(patience)
	if isAway(err) {
		return nil, fault(CodeTryAgain, "the nodeagent daemon does not answer", err.Error())
	}
	return body, err
}

// read takes the call from environment and standard input and checks what can
// be checked without the daemon.
func read(p Process) (Call, Conf, error) {
	call := Call{
		Verb: p.Getenv("CNI_COMMAND"), ContainerID: p.Getenv("CNI_CONTAINERID"), NetNS: p.Getenv("CNI_NETNS"),
		IfName: p.Getenv("CNI_IFNAME"), Args: p.Getenv("CNI_ARGS"),
	}
	if err := call.checkEnvironment(p.Getenv("CNI_PATH")); err != nil {
		return call, Conf{}, err
	}
	raw, err := io.ReadAll(p.Stdin)
	if err != nil {
		return call, Conf{}, fault(CodeIO, "cannot read the network configuration", err.Error())
	}
	var conf Conf
	if err := json.Unmarshal(raw, &conf); err != nil {
		return call, conf, fault(CodeDecode, "the network configuration is not valid JSON", err.Error())
	}
	call.Config = raw
	if err := conf.check(call.Verb); err != nil {
		return call, conf, err
	}
	if conf.Socket == "" {
		conf.Socket = DefaultSocket
	}
	if conf.Queue == "" {
		conf.Queue = DefaultQueue
	}
	return call, conf, nil
}

// checkEnvironment names every variable that is missing or malformed.
func (c Call) checkEnvironment(path string) error {
	onPod := c.Verb == Add || c.Verb == Del || c.Verb == Check
	if !onPod && c.Verb != GC && c.Verb != Status {
		return fault(CodeEnvironment, "CNI_COMMAND has an unknown value: "+c.Verb, "")
	}
	var missing, malformed []string
	for _, v := range []struct {
		name, value string
		needed      bool
		valid       func(string) bool
	}{
		{"CNI_CONTAINERID", c.ContainerID, onPod, ValidName},
		{"CNI_NETNS", c.NetNS, c.Verb == Add || c.Verb == Check, nil},
		{"CNI_IFNAME", c.IfName, onPod, ValidIfName},
		{"CNI_PATH", path, true, nil},
	} {
		switch {
		case v.needed && v.value == "":
			missing = append(missing, v.name)
		case v.needed && v.valid != nil && !v.valid(v.value):
			malformed = append(malformed, v.name+"="+v.value)
		}
	}
	if len(missing) > 0 {
		return fault(CodeEnvironment, "required environment variables are missing: "+strings.Join(missing, ", "), "")
	}
	if len(malformed) > 0 {
		return fault(CodeEnvironment, "environment variables are malformed: "+strings.Join(malformed, ", "), "")
	}
	return nil
}

// check reads versions as the specification says; CHECK came with 0.4.0, GC
// and STATUS with 1.1.0.
func (c *Conf) check(verb string) error {
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0" // what a configuration without version means
	}
	at := slices.Index(Versions(), c.CNIVersion)
	if at < 0 {
		return fault(CodeVersion, "incompatible CNI versions",
			"the network configuration has "+c.CNIVersion+", this plugin speaks "+strings.Join(Versions(), ", "))
	}
	since := map[string]string{Check: "0.4.0", GC: "1.1.0", Status: "1.1.0"}[verb]
	if at < slices.Index(Versions(), since) {
		return fault(CodeVersion, verb+" needs CNI version "+since+", the network configuration has "+c.CNIVersion, "")
	}
	if !ValidName(c.Name) {
		return fault(CodeConfig, "the name of the network configuration is missing or malformed: "+c.Name, "")
	}
	return nil
}
