// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/nodeagent/nodeagent/bpf"
)

// TestNames: every reason and hook of the programs has a name of its own.
func TestNames(t *testing.T) {
	spec, err := bpf.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	var reasons, hooks *btf.Enum
	if err := spec.Types.TypeByName("reason", &reasons); err != nil {
		t.Fatal(err)
	}
	if err := spec.Types.TypeByName("hook", &hooks); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, v := range reasons.Values {
		if v.Name == "REASON_NONE" || v.Name == "REASON_MAX" {
			continue
		}
		r := ReasonOf(bpf.DatapathReason(v.Value))
		if strings.HasPrefix(r.Name, "reason_") || seen[r.Name] {
			t.Errorf("%s has no name of its own: %q", v.Name, r.Name)
		}
		seen[r.Name] = true
		class := map[string]Class{"FWD": Forwarded, "PASS": Passed, "DROP": Dropped}[strings.SplitN(v.Name, "_", 2)[0]]
		if r.Class != class {
			t.Errorf("%s is %s, want %s", v.Name, r.Class, class)
		}
	}
	for _, v := range hooks.Values {
		if v.Name != "HOOK_MAX" && strings.HasPrefix(HookOf(bpf.DatapathHook(v.Value)), "hook_") {
			t.Errorf("%s has no name", v.Name)
		}
	}
}

func TestDecode(t *testing.T) {
	addr := func(s string) bpf.DatapathAddr { return bpf.DatapathAddr{B: netip.MustParseAddr(s).As16()} }
	tup := bpf.DatapathTuple{Src: addr("10.0.1.2"), Dst: addr("10.0.1.3"), Sport: 0x409c, Dport: 0x5000, Proto: 6}
	var b bytes.Buffer
	err := binary.Write(&b, binary.NativeEndian, bpf.DatapathEvent{
		T: tup, N: tup, Len: 60, Hook: uint8(bpf.DatapathHookHOOK_POD), Reason: uint8(bpf.DatapathReasonDROP_SPOOFED),
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := decode(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got := []any{e.Reason.Verdict(), e.Hook, e.Reason.Name, e.Flow.Src.String(), e.Flow.Dst.String(), e.Flow.Proto, e.Len}
	want := []any{"dropped", "from_pod", "spoofed", "10.0.1.2:40000", "10.0.1.3:80", uint8(6), 60}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := decode(b.Bytes()[:20]); err == nil {
		t.Error("an event that is cut off was read")
	}
}
