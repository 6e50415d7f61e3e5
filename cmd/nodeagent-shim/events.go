// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/task"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

const (
	// queueLength is how many events wait for a containerd that is away. Nobody depends on them: ends are also told by Wait.
	queueLength = 256
	callTimeout = 5 * time.Second
	// keepTrying is how long one event is offered to a containerd that does not answer.
	keepTrying = time.Minute
	retryFirst = 100 * time.Millisecond
	retryLast  = 5 * time.Second
)

// publisher tells containerd the events in their order, apart from the work that makes them.
type publisher struct {
	namespace string
	client    ttrpc.Client
	queue     chan task.Event
	closed    chan struct{}
}

func newPublisher(f flags) *publisher {
	return &publisher{
		namespace: f.namespace, client: ttrpc.Client{Address: socketPath(f.ttrpc)},
		queue: make(chan task.Event, queueLength), closed: make(chan struct{}),
	}
}

// publish queues an event, or drops it when the queue is full.
func (p *publisher) publish(e task.Event) {
	select {
	case p.queue <- e:
	default:
	}
}

// close makes run end when the queue is empty.
func (p *publisher) close() { close(p.closed) }

func (p *publisher) run(ctx context.Context) {
	defer p.client.Close()
	for {
		select {
		case e := <-p.queue:
			p.tell(ctx, e)
		case <-p.closed:
			select {
			case e := <-p.queue:
				p.tell(ctx, e)
			default:
				return
			}
		}
	}
}

// tell offers one event until containerd has taken it.
func (p *publisher) tell(ctx context.Context, e task.Event) {
	var envelope, request wire.Message
	envelope.Time(1, e.At)
	envelope.String(2, p.namespace)
	envelope.String(3, e.Topic)
	envelope.Any(4, e.Value)
	request.Bytes(1, envelope)
	deadline := time.Now().Add(keepTrying)
	for delay := retryFirst; time.Now().Before(deadline); delay = min(2*delay, retryLast) {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := p.client.Call(call, "containerd.services.events.ttrpc.v1.Events", "Forward", request)
		cancel()
		if err == nil {
			return
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-p.closed:
			t.Stop()
			return // one try each is all that a shim that ends has time for
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}
