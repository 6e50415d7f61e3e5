// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"sync"
)

// keyLock serialises the verbs on one attachment; the zero value is ready.
type keyLock struct {
	mu   sync.Mutex // guards held
	held map[Key]chan struct{}
}

// lock waits until nobody holds the key, or ctx ends.
func (l *keyLock) lock(ctx context.Context, k Key) (unlock func(), err error) {
	for {
		l.mu.Lock()
		busy, ok := l.held[k]
		if !ok {
			mine := make(chan struct{})
			if l.held == nil {
				l.held = map[Key]chan struct{}{}
			}
			l.held[k] = mine
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, k)
				l.mu.Unlock()
				close(mine)
			}, nil
		}
		l.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
