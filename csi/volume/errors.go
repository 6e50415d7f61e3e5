// SPDX-License-Identifier: Apache-2.0

// Package volume keeps volumes and snapshots: idempotent verbs over them, one
// lock per object, intents on disk before side effects, a ledger that never
// promises more than a pool holds, and recovery at start.
//
// Truth is on disk (one directory per object with a meta.json in its pool) and
// in the kernel (mounts and loop devices); the attachment records under /run
// only say what was asked for. A backend (package backend) keeps the bytes.
package volume

import (
	"errors"
	"fmt"
	"time"
)

// Sentinels of the verbs; package csi maps them to gRPC codes and nobody else.
var (
	// ErrInvalid: a field of the request is malformed or unknown.
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: no such volume, snapshot or group.
	ErrNotFound = errors.New("not found")
	// ErrSourceNotFound: the source of a new volume or snapshot does not exist.
	ErrSourceNotFound = errors.New("source not found")
	// ErrExists: the name is taken by an object that differs from the request.
	ErrExists = errors.New("exists with other properties")
	// ErrRange: the size asked for cannot be had.
	ErrRange = errors.New("size out of range")
	// ErrNoSpace: the pool cannot promise that much.
	ErrNoSpace = errors.New("not enough space")
	// ErrElsewhere: this node has no such place; another may have.
	ErrElsewhere = errors.New("not on this node")
	// ErrPrecondition: the object is not in a state for the verb; retrying the
	// same call does not help until something else changes.
	ErrPrecondition = errors.New("failed precondition")
	// ErrInUse: the object is used by somebody else.
	ErrInUse = errors.New("in use")
	// ErrBusy: another verb works on the object; try again.
	ErrBusy = errors.New("another operation is in progress")
	// ErrUnavailable: the pool or the daemon cannot serve now; try again.
	ErrUnavailable = errors.New("unavailable")
	// ErrDamaged: the object's data or metadata is not what it should be.
	ErrDamaged = errors.New("damaged")
	// ErrHalfDone: the verb failed and could not take itself back; a retry, or
	// recovery, finishes it.
	ErrHalfDone = errors.New("left half done")
	// ErrToken: a paging token is not one that was given out.
	ErrToken = errors.New("bad paging token")
)

// BusyError says which verb holds an object, in which step, and since when.
type BusyError struct {
	ID, Verb, Step string
	Since          time.Time
}

// Error names the verb in the way.
func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is busy: %s has been at step %q since %s", e.ID, e.Verb, e.Step, e.Since.Format(time.RFC3339))
}

// Unwrap makes it an ErrBusy.
func (e *BusyError) Unwrap() error { return ErrBusy }
