// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// watchBuffer holds what the kernel says of links while a hundred pods come.
const watchBuffer = 1 << 20

// Watch sends on changed, without waiting, whenever a device of the host comes,
// goes or changes whose name does not begin with the prefix: that of pods'
// links. It returns once it listens. The channel that it returns is closed when
// it does not any more: ctx has ended, or the kernel had more to say than a
// socket holds.
func (w *Wire) Watch(ctx context.Context, prefix string, changed chan<- struct{}) (<-chan struct{}, error) {
	links := make(chan netlink.LinkUpdate, 64)
	err := w.host.Do(func() error {
		return netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{
			ErrorCallback:     func(error) {}, // its channel is closed then
			ReceiveBufferSize: watchBuffer, ReceiveBufferForceSize: true,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	deaf := make(chan struct{})
	go func() {
		defer close(deaf)
		for l := range links {
			if strings.HasPrefix(l.Attrs().Name, prefix) {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return deaf, nil
}
