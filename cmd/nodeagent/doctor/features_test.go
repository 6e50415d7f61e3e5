// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/dataplane/attach"
)

// TestMissingFeatures: each lack is named with its price.
func TestMissingFeatures(t *testing.T) {
	lacks := func(name string, err error) []Finding {
		return judge(attach.Features(), func(f attach.Feature) error {
			if f.Name == name {
				return err
			}
			return nil
		})
	}
	for _, tt := range []struct {
		name  string
		err   error
		level Level
		hint  string
	}{
		{"", nil, OK, ""},
		{"bpf_redirect_peer", attach.ErrLacking, Fail, "no network"},
		{"tcx", attach.ErrLacking, Warn, "filters"},
		{"programs at connect() (cgroup_sock_addr)", attach.ErrLacking, Warn, "socketServices"},
		{"bpf_loop", unix.EPERM, Warn, "root"},
		{"bpf_loop", errors.New("odd"), Warn, "no network"},
	} {
		got := lacks(tt.name, tt.err)
		if len(got) != 1 || got[0].Level != tt.level || !strings.Contains(got[0].Hint, tt.hint) {
			t.Errorf("%s, %v: %+v, want one at %s with %q", tt.name, tt.err, got, tt.level, tt.hint)
		}
	}
}
