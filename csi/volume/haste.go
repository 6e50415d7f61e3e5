// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// rcuExpedited is the kernel's switch for all its synchronous RCU grace periods;
// where rcu_normal is set, as on real-time machines, it has no effect.
const rcuExpedited = "/sys/kernel/rcu_expedited"

// haste shortens freezes. The kernel closes a file system to writers, to page
// faults and to its own threads one after the other, and waits for an RCU grace
// period at each: 33 to 60 ms in which writers are held and nothing is done. With
// grace periods that end at once it is 1 ms. The switch is the whole machine's, so
// it is on for that millisecond only, and recorded before; where it cannot be
// turned, or somebody else has turned it, freezes take what they take.
type haste struct {
	knob  string
	state *stateStore
	log   *slog.Logger

	mu    sync.Mutex // guards the fields below
	users int
	ours  bool // whether it is us who turned it on
}

func (h *haste) begin(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users++
	if b, err := os.ReadFile(h.knob); h.users > 1 || err != nil || strings.TrimSpace(string(b)) != "0" {
		return
	}
	if err := h.state.setHurried(true); err != nil {
		h.log.WarnContext(ctx, "grace periods not hurried", "err", err)
		return
	}
	if err := os.WriteFile(h.knob, []byte("1"), 0); err != nil { // a read-only /sys
		h.forget(ctx)
		return
	}
	h.ours = true
}

func (h *haste) end(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users--
	if h.users == 0 && h.ours {
		h.calm(ctx)
	}
}

// recover turns off what a daemon that was killed left on.
func (h *haste) recover(ctx context.Context) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state.hurried() {
		h.calm(ctx)
	}
}

func (h *haste) calm(ctx context.Context) {
	h.ours = false
	if err := os.WriteFile(h.knob, []byte("0"), 0); err != nil {
		h.log.WarnContext(ctx, "grace periods stay hurried", "knob", h.knob, "err", err)
		return
	}
	h.forget(ctx)
}

func (h *haste) forget(ctx context.Context) {
	if err := h.state.setHurried(false); err != nil {
		h.log.WarnContext(ctx, "grace periods may be calmed once too often", "err", err)
	}
}
