// SPDX-License-Identifier: Apache-2.0

package containerd

// Abandon stops supervising without ending containerd, as kill -9 would.
func (s *Supervisor) Abandon() {
	s.cancel()
	<-s.done
}
