// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

func open(t *testing.T, path string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func load(t *testing.T, db *bbolt.DB) *store.Store {
	t.Helper()
	s := store.New(db)
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRecordsSurvive(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	s := load(t, db)
	sb := &store.Sandbox{ID: "ab12", State: store.SandboxReady, Handler: "h", CreatedAt: 7, Namespaces: store.Namespaces{Net: "/n"}}
	sb.Config.M = &runtimeapi.PodSandboxConfig{Hostname: "web", Labels: map[string]string{"a": "b"}}
	c := &store.Container{ID: "cd34", SandboxID: "ab12", State: store.ContainerRunning, PID: 9}
	c.Config.M = &runtimeapi.ContainerConfig{Envs: []*runtimeapi.KeyValue{{Key: "k", Value: []byte{0, 255}}}}
	if err := errors.Join(s.Sandboxes.Put(sb), s.Containers.Put(c)); err != nil {
		t.Fatal(err)
	}
	again := load(t, db)
	gs, err := again.Sandboxes.Find("ab12")
	if err != nil || !proto.Equal(gs.Config.M, sb.Config.M) || gs.Namespaces != sb.Namespaces || gs.Resources.M != nil {
		t.Errorf("sandbox %+v, %v", gs, err)
	}
	gc := again.ContainersOf("ab12")
	if len(gc) != 1 || !proto.Equal(gc[0].Config.M, c.Config.M) || gc[0].PID != 9 {
		t.Errorf("containers %+v", gc)
	}
	if err := again.Containers.Delete("cd34"); err != nil {
		t.Fatal(err)
	}
	if n := len(load(t, db).Containers.Select(nil)); n != 0 {
		t.Errorf("%d containers after delete", n)
	}
}

func TestFind(t *testing.T) {
	s := load(t, open(t, filepath.Join(t.TempDir(), "db")))
	for _, id := range []string{"aa11", "aa22", "bb"} {
		if err := s.Containers.Put(&store.Container{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		ref, want string
		err       error
	}{
		{"aa11", "aa11", nil},
		{"b", "bb", nil},
		{"aa2", "aa22", nil},
		{"aa", "", errdefs.ErrInvalidArgument},
		{"c", "", errdefs.ErrNotFound},
		{"", "", errdefs.ErrNotFound},
		{"bbb", "", errdefs.ErrNotFound},
	} {
		c, err := s.Containers.Find(tc.ref)
		if !errors.Is(err, tc.err) || (err == nil && c.ID != tc.want) {
			t.Errorf("%q: %v, %v", tc.ref, c, err)
		}
	}
}

func TestUpdate(t *testing.T) {
	s := load(t, open(t, filepath.Join(t.TempDir(), "db")))
	first := &store.Container{ID: "a", State: store.ContainerCreated}
	if err := s.Containers.Put(first); err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	if _, err := s.Containers.Update("a", func(c *store.Container) error { c.PID = 1; return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if c, _ := s.Containers.Get("a"); c.PID != 0 {
		t.Error("a refused change was published")
	}
	if _, err := s.Containers.Update("a", func(c *store.Container) error { c.PID = 2; return nil }); err != nil {
		t.Fatal(err)
	}
	if c, _ := s.Containers.Get("a"); c.PID != 2 || first.PID != 0 {
		t.Errorf("now %d, the record handed out before has %d", c.PID, first.PID)
	}
	if _, err := s.Containers.Update("b", func(*store.Container) error { return nil }); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "db"))
	load(t, db)
	err := db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("cri_sandboxes")).Put([]byte("_version"), []byte("99"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.New(db).Load(); !errors.Is(err, store.ErrVersion) {
		t.Errorf("got %v", err)
	}
}
