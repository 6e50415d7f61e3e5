// SPDX-License-Identifier: Apache-2.0

package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/backend/lvm"
)

// group plays the lvm program over a map of logical volumes.
type group struct {
	volumes map[string]string // name to size
	calls   []string
	fail    map[string]error // by subcommand
}

func (g *group) run(_ context.Context, args ...string) ([]byte, error) {
	g.calls = append(g.calls, strings.Join(args, " "))
	if err := g.fail[args[0]]; err != nil {
		return nil, err
	}
	switch args[0] {
	case "lvs":
		name := args[len(args)-1]
		name = name[strings.LastIndexAny(name, "=/")+1:]
		if name == "pool" {
			return []byte(`{"report":[{"lv":[{"lv_size":"1000","data_percent":"25.00"}]}]}`), nil
		}
		if size, ok := g.volumes[name]; ok {
			return fmt.Appendf(nil, `{"report":[{"lv":[{"lv_name":%q,"lv_size":%q,"data_percent":"50.00"}]}]}`, name, size), nil
		}
		return []byte(`{"report":[{"lv":[]}]}`), nil
	case "vgs":
		return []byte(`{"report":[{"vg":[{"vg_size":"1000","vg_free":"600"}]}]}`), nil
	case "lvcreate":
		for i, a := range args {
			if a == "-n" {
				g.volumes[args[i+1]] = "64"
			}
		}
	case "lvextend":
		g.volumes[args[3][strings.Index(args[3], "/")+1:]] = strings.TrimSuffix(args[2], "b")
	case "lvremove":
		delete(g.volumes, args[2][strings.Index(args[2], "/")+1:])
	}
	return nil, nil
}

func TestThin(t *testing.T) {
	ctx := context.Background()
	g := &group{volumes: map[string]string{}, fail: map[string]error{}}
	b := lvm.New("vg", "pool", g.run)
	a := backend.Object{ID: "vol-a", Handle: "h1", Bytes: 64}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(b.Create(ctx, a, nil))
	check(b.Create(ctx, a, nil)) // again: the one that was half made goes first
	check(b.Check(ctx, a))
	snap := backend.Object{ID: "snap-a", Handle: "h2", Bytes: 64}
	check(b.Snapshot(ctx, a, snap))
	larger := backend.Object{ID: "vol-b", Handle: "h3", Bytes: 128}
	check(b.Create(ctx, larger, &snap))
	check(b.Check(ctx, larger))
	if u, err := b.Usage(ctx, a, false); err != nil || u.Allocated != 32 || u.Debt != 32 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if s, err := b.Space(ctx); err != nil || s.Total != 1000 || s.Free != 750 {
		t.Errorf("space %+v, %v", s, err)
	}
	for _, o := range []backend.Object{a, snap, larger, a, {ID: "never made"}} {
		check(b.Destroy(ctx, o))
	}
	if len(g.volumes) != 0 {
		t.Errorf("left: %v", g.volumes)
	}
	if err := b.Check(ctx, a); !errors.Is(err, backend.ErrMissing) {
		t.Errorf("check of the absent: %v", err)
	}
	for _, c := range g.calls {
		if strings.Contains(c, "lvremove") && !strings.Contains(c, "vg/na-") {
			t.Errorf("touched a logical volume that is not ours: %s", c)
		}
	}
}

func TestThick(t *testing.T) {
	ctx := context.Background()
	g := &group{volumes: map[string]string{"na-h1": "64"}, fail: map[string]error{}}
	b := lvm.New("vg", "", g.run)
	a := backend.Object{ID: "vol-a", Handle: "h1", Bytes: 64}
	if err := b.Snapshot(ctx, a, a); !errors.Is(err, backend.ErrNotSupported) {
		t.Errorf("snapshot of a thick volume: %v", err)
	}
	if _, err := b.Attach(ctx, a, backend.AttachOptions{ReadOnly: true}); !errors.Is(err, backend.ErrNotSupported) {
		t.Errorf("read-only device: %v", err)
	}
	g.fail["lvextend"] = errors.New("lvextend: Insufficient free space: 10 extents needed")
	a.Bytes = 4096
	if err := b.Grow(ctx, a); !errors.Is(err, backend.ErrNoSpace) {
		t.Errorf("grow in a full group: %v", err)
	}
	g.fail["lvremove"] = errors.New("lvremove: Logical volume vg/na-h1 in use")
	if err := b.Destroy(ctx, a); !errors.Is(err, backend.ErrBusy) {
		t.Errorf("remove of one in use: %v", err)
	}
	if s, err := b.Space(ctx); err != nil || s.Free != 600 {
		t.Errorf("space %+v, %v", s, err)
	}
}
