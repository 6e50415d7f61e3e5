// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// life is a volume's whole life, verb by verb; every verb is one that the
// kubelet or a controller would retry until it succeeds. Data written early must
// be readable whenever the volume can be mounted.
type life struct {
	name string
	do   func(ctx context.Context, m *Manager, dir string) error
}

const (
	lifeBytes = 32 << 20
	lifeText  = "written before the crash\n"
)

func lifeOf(name string) []life {
	cfg := testConfig("/")
	id, snap, clone := cfg.volumeID(name), cfg.snapshotID(name), cfg.volumeID(name+"-clone")
	stage := func(dir string) string { return filepath.Join(dir, "kubelet", "stage") }
	target := func(dir string) string { return filepath.Join(dir, "kubelet", "target") }
	one := []Capability{{Mode: SingleWriter, FSType: "ext4"}}
	return []life{
		{"create", func(ctx context.Context, m *Manager, _ string) error {
			_, err := m.Create(ctx, CreateRequest{Name: name, Required: lifeBytes, Capabilities: one})
			return err
		}},
		{"stage", func(ctx context.Context, m *Manager, dir string) error {
			if err := os.MkdirAll(stage(dir), 0o755); err != nil {
				return err
			}
			return m.Stage(ctx, StageRequest{ID: id, Path: stage(dir), Capability: one[0]})
		}},
		{"publish", func(ctx context.Context, m *Manager, dir string) error {
			return m.Publish(ctx, PublishRequest{ID: id, Staging: stage(dir), Target: target(dir), Capability: one[0]})
		}},
		{"write", func(_ context.Context, _ *Manager, dir string) error {
			f, err := os.OpenFile(filepath.Join(target(dir), "data"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			_, err = f.WriteString(lifeText)
			return errors.Join(err, f.Sync(), f.Close())
		}},
		{"snapshot", func(ctx context.Context, m *Manager, _ string) error {
			_, err := m.Snapshot(ctx, SnapshotRequest{Name: name, Volume: id})
			return err
		}},
		{"group", func(ctx context.Context, m *Manager, _ string) error {
			_, _, err := m.SnapshotGroup(ctx, GroupRequest{Name: name, Volumes: []string{id}})
			return err
		}},
		{"expand", func(ctx context.Context, m *Manager, _ string) error {
			_, err := m.Expand(ctx, id, lifeBytes+(8<<20), 0)
			return err
		}},
		{"restore", func(ctx context.Context, m *Manager, _ string) error {
			_, err := m.Create(ctx, CreateRequest{Name: name + "-clone", Required: lifeBytes, Capabilities: one, Source: &SourceRef{Kind: KindSnapshot, ID: snap}})
			return err
		}},
		{"read", func(_ context.Context, _ *Manager, dir string) error {
			b, err := os.ReadFile(filepath.Join(target(dir), "data"))
			if err == nil && string(b) != lifeText {
				err = fmt.Errorf("the volume holds %q", b)
			}
			return err
		}},
		{"unpublish", func(ctx context.Context, m *Manager, dir string) error { return m.Unpublish(ctx, id, target(dir)) }},
		{"unstage", func(ctx context.Context, m *Manager, dir string) error { return m.Unstage(ctx, id, stage(dir)) }},
		{"delete", func(ctx context.Context, m *Manager, _ string) error { return m.Delete(ctx, id) }},
		{"delete clone", func(ctx context.Context, m *Manager, _ string) error { return m.Delete(ctx, clone) }},
		{"delete snapshot", func(ctx context.Context, m *Manager, _ string) error { return m.DeleteSnapshot(ctx, snap) }},
		{"delete group", func(ctx context.Context, m *Manager, _ string) error {
			return m.DeleteGroup(ctx, cfg.groupID(name), nil)
		}},
	}
}

// points runs one life undisturbed and returns the checkpoints it passes.
func points(t *testing.T, w *world) []string {
	t.Helper()
	var seen []string
	w.point = func(verb, step string) error {
		if p := verb + "/" + step; !slices.Contains(seen, p) {
			seen = append(seen, p)
		}
		return nil
	}
	for _, l := range lifeOf("dry") {
		if err := l.do(context.Background(), w.m, w.dir); err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
	}
	w.point = nil
	w.clean()
	return seen
}

// Every verb, disturbed once at every step in each of three ways, is retried as
// its caller would; the life goes on, no data is lost, and nothing is left.
func TestRootEveryStepFails(t *testing.T) {
	for _, pool := range []struct{ name, fs string }{{"reflink", "xfs"}, {"copies", ""}} {
		t.Run(pool.name, func(t *testing.T) {
			w := newWorld(t, pool.fs, 768<<20)
			seen := points(t, w)
			if len(seen) < 25 {
				t.Fatalf("only %d checkpoints: %s", len(seen), seen)
			}
			for _, point := range seen {
				for _, how := range []string{"fail", "crash", "cancel"} {
					t.Run(how+" at "+strings.ReplaceAll(point, "/", ", "), func(t *testing.T) {
						w.t = t
						disturb(t, w, point, how)
					})
				}
			}
			w.t = t
		})
	}
}

//nolint:cyclop // one life, told in order
func disturb(t *testing.T, w *world, point, how string) {
	t.Helper()
	hit := 0
	failure := errors.New("injected failure")
	for _, l := range lifeOf("life") {
		ctx, cancel := context.WithCancel(context.Background())
		armed := hit == 0
		w.point = func(verb, step string) error {
			if !armed || verb+"/"+step != point {
				return nil
			}
			hit++
			armed = false
			switch how {
			case "fail":
				return failure
			case "crash":
				return errCrash
			default:
				cancel()
				return ctx.Err()
			}
		}
		err := l.do(ctx, w.m, w.dir)
		cancel()
		switch {
		case hit == 1 && err == nil && !strings.HasSuffix(point, "/destroy"):
			t.Fatalf("%s succeeded in spite of the disturbance", l.name)
		case hit == 1:
			if errors.Is(err, ErrHalfDone) {
				t.Fatalf("%s could not take itself back: %v", l.name, err)
			}
			hit = 2
			if how == "crash" {
				w.restart()
			} else if left := strayOf(t, w); len(left) > 0 {
				t.Fatalf("%s left %s", l.name, left)
			}
			err = l.do(context.Background(), w.m, w.dir)
		}
		if err != nil {
			t.Fatalf("%s: %v", l.name, err)
		}
	}
	w.point = nil
	w.m.sweepTrash(context.Background(), "") // as the background does
	if hit == 0 {
		t.Fatal("the checkpoint was not passed")
	}
	w.clean()
}

// strayOf lists what a verb that failed without a crash may not leave: nothing
// half made, nothing in the trash.
func strayOf(t *testing.T, w *world) []string {
	t.Helper()
	var out []string
	for _, d := range []string{dirNew} {
		names, err := os.ReadDir(filepath.Join(w.cfg.Pools[0].Path, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			out = append(out, d+"/"+n.Name())
		}
	}
	return out
}

const (
	victimEnv      = "NODEAGENT_TEST_VICTIM"      // where to die
	victimDirEnv   = "NODEAGENT_TEST_VICTIM_DIR"  // the world's directory
	victimPoolEnv  = "NODEAGENT_TEST_VICTIM_POOL" // the pool's directory
	victimSurvived = 42
)

// victim lives a life in a process of its own and kills itself with SIGKILL at
// one checkpoint.
func victim() int {
	dir, at := os.Getenv(victimDirEnv), os.Getenv(victimEnv)
	db, err := openDB(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cfg := testConfig(dir, PoolConfig{Name: "p", Path: os.Getenv(victimPoolEnv), Backend: BackendFile, Overcommit: 10})
	m, err := New(cfg, Deps{Log: discard(), DB: db, Checkpoint: func(verb, step string) error {
		if verb+"/"+step == at {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}})
	if err == nil {
		err = m.Start(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, l := range lifeOf("life") {
		if err := l.do(context.Background(), m, dir); err != nil {
			fmt.Fprintln(os.Stderr, l.name, err)
			return 1
		}
	}
	return victimSurvived
}

// A daemon killed with SIGKILL at every checkpoint: the next one thaws what is
// frozen, finishes or takes back what was begun, and the retried life loses no
// data and leaves nothing.
func TestRootKillAtEveryStep(t *testing.T) {
	w := newWorld(t, "xfs", 768<<20)
	seen := points(t, w)
	for _, point := range seen {
		t.Run(strings.ReplaceAll(point, "/", ", "), func(t *testing.T) {
			w.t = t
			w.stop()
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), victimEnv+"="+point, victimDirEnv+"="+w.dir, victimPoolEnv+"="+w.cfg.Pools[0].Path)
			out, err := cmd.CombinedOutput()
			if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !st.Signaled() {
				t.Fatalf("the process was not killed: %v %s", err, out)
			}
			w.start()
			at, err := mount.At(filepath.Join(w.dir, "kubelet", "target"))
			if err != nil {
				t.Fatal(err)
			}
			if at.Mounted {
				// Hangs, and so fails the test, if the file system is still frozen.
				w.write(filepath.Join(w.dir, "kubelet", "target"), "thawed")
			}
			for _, l := range lifeOf("life") {
				if err := l.do(context.Background(), w.m, w.dir); err != nil {
					t.Fatalf("%s after the crash: %v", l.name, err)
				}
			}
			w.clean()
		})
	}
	w.t = t
}
