// SPDX-License-Identifier: Apache-2.0

// Package shim is the program that a runtime execs as a CNI plugin: it checks
// the environment, sends one request to the daemon and prints the answer. When
// the daemon is away a delete is written down for it, and is a success. It
// thinks of nothing else and imports nothing heavy: the program starts for
// every pod.
package shim

import (
	"encoding/json"
	"strings"
)

// DefaultSocket is the daemon's socket unless the network configuration has a
// key "socket".
const DefaultSocket = "/run/nodeagent/api.sock"

// DefaultQueue is where deletes wait for the daemon unless the network
// configuration has a key "queue".
const DefaultQueue = "/run/nodeagent/cni-queue"

// Verbs of CNI.
const (
	Add     = "ADD"
	Del     = "DEL"
	Check   = "CHECK"
	GC      = "GC"
	Status  = "STATUS"
	Version = "VERSION"
)

// Call is one call of the plugin as the daemon gets it: the environment and
// the network configuration as the runtime wrote it.
type Call struct {
	Verb        string          `json:"verb"`
	ContainerID string          `json:"containerID,omitempty"`
	NetNS       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config"`
}

// Path returns the path of the daemon's API for the verb.
func (c Call) Path() string { return "/v1/cni/" + strings.ToLower(c.Verb) }

// Conf is what the shim itself reads of the network configuration.
type Conf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Socket     string `json:"socket"`
	Queue      string `json:"queue"`
}

// Versions are the versions of CNI that nodeagent speaks.
func Versions() []string { return []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} }

// Codes of errors (CNI specification, section "Error").
const (
	CodeVersion      = 1
	CodeUnsupported  = 2
	CodeUnknown      = 3
	CodeEnvironment  = 4
	CodeIO           = 5
	CodeDecode       = 6
	CodeConfig       = 7
	CodeNetNS        = 8
	CodeTryAgain     = 11
	CodeNotAvailable = 50
	CodeInternal     = 999
	// CodeBroken (CHECK): the attachment is not as ADD left it.
	CodeBroken = 100
	// CodeExists (ADD): the pod has an interface of that name already.
	CodeExists = 101
)

// Error is an error as CNI has it on standard output.
type Error struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details,omitempty"`
}

// Error implements error.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// newestVersion is used for errors before the configuration's version is known.
const newestVersion = "1.1.0"

func fault(code int, msg, details string) *Error {
	return &Error{CNIVersion: newestVersion, Code: code, Msg: msg, Details: details}
}
