// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// WatchImages calls changed with the name of each image record that anybody
// creates, updates or deletes, until ctx ends or the connection breaks. It
// calls subscribed once when no change from then on can be missed.
func (c *Client) WatchImages(ctx context.Context, subscribed func(), changed func(name string)) error {
	if c.c == nil {
		return ErrNotConnected
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, errs := c.c.Subscribe(ctx,
		fmt.Sprintf(`namespace==%q,topic~="^/images/"`, Namespace))
	subscribed()
	for {
		select {
		case env := <-ch:
			name, err := imageName(env)
			if err != nil {
				return err
			}
			changed(name)
		case err := <-errs:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch images: %w", err)
		}
	}
}

// imageName returns the record's name that an event is about.
func imageName(env *events.Envelope) (string, error) {
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		return "", fmt.Errorf("decode event %s: %w", env.Topic, err)
	}
	switch e := v.(type) {
	case *eventsapi.ImageCreate:
		return e.Name, nil
	case *eventsapi.ImageUpdate:
		return e.Name, nil
	case *eventsapi.ImageDelete:
		return e.Name, nil
	default:
		return "", nil
	}
}
