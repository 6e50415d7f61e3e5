// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// HoldFlows marks connections that go on as lately used: a full table takes
// others back first.
func (k *Kernel) HoldFlows() error {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if _, err := k.CtHold.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("hold flows: %w", err)
	}
	return nil
}
