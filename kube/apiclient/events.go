// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"
)

const (
	// eventQueue is how many events wait for the server; more are lost.
	eventQueue = 1000
	// eventTries is how often an event is offered to a server that is away.
	eventTries = 12
	eventPause = 5 * time.Second
	// An object may have eventBurst events at once and one each eventEvery; the
	// figures are those of client-go's spam filter.
	eventBurst = 25
	eventEvery = 5 * time.Minute
	// eventMemory bounds what is remembered of objects and events.
	eventMemory = 4096
)

// Object is what events are about.
type Object interface {
	runtime.Object
	metav1.Object
}

// Recorder writes events. The same event again raises the count of the first.
// (client-go's recorder computes its patches with the OpenAPI libraries, half
// of which it links.)
type Recorder struct {
	client *Client
	source corev1.EventSource
	queue  chan *corev1.Event

	// Only Run uses these.
	written map[string]*corev1.Event
	limits  map[types.UID]flowcontrol.PassiveRateLimiter
}

// NewRecorder makes a recorder in the name of source; it writes while Run runs.
func (c *Client) NewRecorder(source corev1.EventSource) *Recorder {
	return &Recorder{
		client: c, source: source, queue: make(chan *corev1.Event, eventQueue),
		written: map[string]*corev1.Event{}, limits: map[types.UID]flowcontrol.PassiveRateLimiter{},
	}
}

// Eventf is Event with a format.
func (r *Recorder) Eventf(about Object, kind, reason, format string, args ...any) {
	r.Event(about, kind, reason, fmt.Sprintf(format, args...))
}

// Event notes what happened to an object; kind is corev1.EventTypeNormal or
// EventTypeWarning. It never waits.
func (r *Recorder) Event(about Object, kind, reason, text string) {
	ref := corev1.ObjectReference{
		Namespace: about.GetNamespace(), Name: about.GetName(), UID: about.GetUID(), ResourceVersion: about.GetResourceVersion(),
	}
	if gvks, _, err := r.client.scheme.ObjectKinds(about); err == nil {
		ref.APIVersion, ref.Kind = gvks[0].ToAPIVersionAndKind()
	}
	r.EventOn(ref, kind, reason, text)
}

// EventOn is Event for an object that is known by a reference only.
func (r *Recorder) EventOn(ref corev1.ObjectReference, kind, reason, text string) {
	now := metav1.Now()
	ns := ref.Namespace
	if ns == "" { // events of what has no namespace are kept here
		ns = metav1.NamespaceDefault
	}
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano())},
		InvolvedObject: ref, Type: kind, Reason: reason, Message: text, Source: r.source,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: r.source.Component, ReportingInstance: r.source.Host,
	}
	select {
	case r.queue <- e:
	default: // the server is away for long: events are no record
	}
}

// Run writes events until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.write(ctx, e)
		}
	}
}

func (r *Recorder) write(ctx context.Context, e *corev1.Event) {
	if len(r.written) > eventMemory {
		clear(r.written)
	}
	if len(r.limits) > eventMemory {
		clear(r.limits)
	}
	limit := r.limits[e.InvolvedObject.UID]
	if limit == nil {
		limit = flowcontrol.NewTokenBucketPassiveRateLimiter(float32(1/eventEvery.Seconds()), eventBurst)
		r.limits[e.InvolvedObject.UID] = limit
	}
	if !limit.TryAccept() {
		return
	}
	key := fmt.Sprint(e.InvolvedObject.Kind, "/", e.InvolvedObject.UID, "/", e.Type, "/", e.Reason, "/", e.Message)
	for range eventTries {
		out, err := r.put(ctx, r.written[key], e)
		if err == nil {
			r.written[key] = out
			return
		}
		if !away(err) || !pause(ctx, eventPause) {
			return
		}
	}
}

// put raises the count of the event that was written before, or writes a new one.
func (r *Recorder) put(ctx context.Context, before, e *corev1.Event) (*corev1.Event, error) {
	api := r.client.Events(e.Namespace)
	if before != nil {
		patch := fmt.Sprintf(`{"count":%d,"lastTimestamp":%q}`, before.Count+1, e.LastTimestamp.UTC().Format(time.RFC3339))
		out, err := api.Patch(ctx, before.Name, types.MergePatchType, []byte(patch))
		if !apierrors.IsNotFound(err) { // the server forgets events after an hour
			return out, err
		}
	}
	return api.Create(ctx, e, metav1.CreateOptions{})
}

// away reports whether the server did not answer, or not sensibly; what it
// refuses it will refuse again.
func away(err error) bool {
	return apierrors.ReasonForError(err) == metav1.StatusReasonUnknown || apierrors.IsServerTimeout(err) ||
		apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsInternalError(err)
}

// pause waits for d and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
