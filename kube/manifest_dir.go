// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/client-go/tools/cache"
)

// settleTime is how long a directory has to be quiet before it is read: an
// editor or a sync tool writes a file in several steps.
const settleTime = 50 * time.Millisecond

// pollTime is how often the directory is read without a notification: a
// directory that was away when the agent began cannot notify.
const pollTime = 10 * time.Second

// dirSource takes objects from the files of a directory: those ending in
// .yaml, .yml or .json whose name does not begin with a dot. A file that
// cannot be read or that has a faulty object stays what it was; a file that
// was never right keeps the state from being complete, so that nothing is
// pruned for a typing error.
type dirSource struct {
	dir     string
	log     *slog.Logger
	metrics *metrics

	onChange map[kind]func(obj any)
	stores   map[kind]cache.Indexer
	whole    chan struct{} // closed when the state was complete once
	order    []kind

	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	files map[string]*manifestFile // guarded by mu; by name
	fault error                    // guarded by mu; of the directory itself
	clash []error                  // guarded by mu; objects that two files have
}

// manifestFile is one file as it was read.
type manifestFile struct {
	stamp   fileStamp
	objects []manifestObject
	once    bool  // it was right once
	fault   error // of the last reading
}

// fileStamp tells whether a file is still the one that was read.
type fileStamp struct {
	size  int64
	mtime time.Time
	info  os.FileInfo
}

func (s fileStamp) same(o fileStamp) bool {
	return s.info != nil && o.info != nil && s.size == o.size && s.mtime.Equal(o.mtime) && os.SameFile(s.info, o.info)
}

var _ source = (*dirSource)(nil)

func newDirSource(dir string, log *slog.Logger, m *metrics) *dirSource {
	return &dirSource{
		dir: dir, log: log.With("dir", dir), metrics: m,
		onChange: map[kind]func(any){}, stores: map[kind]cache.Indexer{},
		whole: make(chan struct{}), files: map[string]*manifestFile{},
	}
}

func (s *dirSource) follow(k kind, onChange func(obj any)) {
	s.onChange[k] = onChange
	s.stores[k] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, indexers(k))
	s.order = append(s.order, k)
}

// start reads the directory as a whole, whatever is asked for, once.
func (s *dirSource) start(ctx context.Context, _ ...kind) error {
	if s.cancel != nil {
		return nil
	}
	ctx, s.cancel = context.WithCancel(ctx)
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		s.cancel()
		return fmt.Errorf("watch %s: %w", s.dir, err)
	}
	s.load(ctx, watcher)
	s.wg.Go(func() { s.run(ctx, watcher) })
	return nil
}

func (s *dirSource) stop() {
	if s.cancel != nil {
		s.cancel()
	}
	s.wg.Wait()
}

// run reads the directory whenever it changed and has become quiet.
func (s *dirSource) run(ctx context.Context, watcher *fsnotify.Watcher) {
	defer func() { _ = watcher.Close() }()
	poll := time.NewTicker(pollTime)
	defer poll.Stop()
	quiet := time.NewTimer(0)
	quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-watcher.Events:
			quiet.Reset(settleTime)
		case err := <-watcher.Errors: // events were lost: read everything
			s.log.DebugContext(ctx, "directory watch lost events", "err", err)
			quiet.Reset(settleTime)
		case <-poll.C:
			s.load(ctx, watcher)
		case <-quiet.C:
			s.load(ctx, watcher)
		}
	}
}

// load reads what changed and tells of the difference.
func (s *dirSource) load(ctx context.Context, watcher *fsnotify.Watcher) {
	// Adding a path that is watched already does nothing. It comes before
	// reading, so that no change falls between.
	err := watcher.Add(s.dir)
	var names []string
	if err == nil {
		names, err = manifestNames(s.dir)
	}
	s.mu.Lock()
	s.setFault(ctx, err)
	if err == nil {
		s.readFiles(ctx, names)
	}
	objects, complete := s.merge()
	s.mu.Unlock()
	if err != nil {
		return
	}
	s.apply(objects)
	if complete && !isClosed(s.whole) {
		close(s.whole)
	}
}

func (s *dirSource) setFault(ctx context.Context, err error) {
	if err != nil && s.fault == nil {
		s.log.ErrorContext(ctx, "manifests cannot be read, what they told stays in force", "err", err)
	}
	s.fault = err
}

// readFiles reads new and changed files and forgets those that are gone.
func (s *dirSource) readFiles(ctx context.Context, names []string) {
	maps.DeleteFunc(s.files, func(name string, _ *manifestFile) bool { return !slices.Contains(names, name) })
	for _, name := range names {
		f := s.files[name]
		if f == nil {
			f = &manifestFile{}
			s.files[name] = f
		}
		if err := f.read(filepath.Join(s.dir, name)); err != nil {
			s.log.ErrorContext(ctx, "manifest is not right, its objects stay as they were", "file", name, "err", err)
		}
	}
}

// read takes the file in if it changed. It returns the fault of this reading
// only, so that a fault is logged once.
func (f *manifestFile) read(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		f.fault = err
		return err
	}
	stamp := fileStamp{size: info.Size(), mtime: info.ModTime(), info: info}
	if f.stamp.same(stamp) {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.fault = err
		return err
	}
	objects, err := decodeManifest(filepath.Base(path), data)
	f.stamp, f.fault = stamp, err
	if err == nil {
		f.objects, f.once = objects, true
	}
	return err
}

// merge puts the files together. Of an object that two files have, the one
// in the first file by name counts.
func (s *dirSource) merge() (map[kind]map[string]manifestObject, bool) {
	all := map[kind]map[string]manifestObject{}
	for k := range s.stores {
		all[k] = map[string]manifestObject{}
	}
	s.clash = nil
	complete := s.fault == nil
	seen := map[string]manifestObject{}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		f := s.files[name]
		complete = complete && f.once
		for _, o := range f.objects {
			id := string(o.kind) + ":" + o.key
			if first, ok := seen[id]; ok {
				s.clash = append(s.clash, fmt.Errorf("%s: %s is already in %s", o.where, o.title, first.where))
				continue
			}
			seen[id] = o
			if m, ok := all[o.kind]; ok {
				m[o.key] = o
			}
		}
	}
	return all, complete
}

// apply brings the stores to objects and tells of each difference.
func (s *dirSource) apply(objects map[kind]map[string]manifestObject) {
	for _, k := range s.order {
		store := s.stores[k]
		for key, o := range objects[k] {
			old, ok, err := store.GetByKey(key)
			if err != nil || ok && reflect.DeepEqual(old, o.object) {
				continue
			}
			if err := store.Add(o.object); err == nil {
				s.onChange[k](o.object)
			}
		}
		for _, key := range store.ListKeys() {
			if _, ok := objects[k][key]; ok {
				continue
			}
			old, ok, err := store.GetByKey(key)
			if err != nil || !ok {
				continue
			}
			if err := store.Delete(old); err == nil {
				s.onChange[k](old)
			}
		}
	}
}

func (s *dirSource) objects(k kind) cache.Indexer { return s.stores[k] }

func (s *dirSource) complete(kind) <-chan struct{} { return s.whole }

func (s *dirSource) status() SourceStatus {
	out := SourceStatus{From: s.dir}
	for _, k := range s.order {
		out.Kinds = append(out.Kinds, KindStatus{
			Kind: string(k), Objects: len(s.stores[k].ListKeys()), Complete: isClosed(s.whole),
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fault != nil {
		out.Faults = append(out.Faults, s.fault.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(s.files)) {
		if err := s.files[name].fault; err != nil {
			out.Faults = append(out.Faults, strings.Split(err.Error(), "\n")...)
		}
	}
	if err := errors.Join(s.clash...); err != nil {
		out.Faults = append(out.Faults, strings.Split(err.Error(), "\n")...)
	}
	return out
}

// manifestNames are the directory's manifests, sorted.
func manifestNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			continue
		}
		names = append(names, e.Name())
	}
	return names, nil
}
