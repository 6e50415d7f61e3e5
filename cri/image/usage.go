// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/stats"
)

// unasked is how long nobody may ask before disk usage is no longer measured.
const unasked = 2 * time.Minute

// layerKey names a snapshot.
type layerKey struct{ snapshotter, key string }

// fsUsage is what one snapshotter occupied when it was last measured.
type fsUsage struct {
	root, device                 string
	at                           time.Time
	imageBytes, imageInodes      uint64
	writableBytes, writableNodes uint64
	committed                    map[string]containerd.SnapshotUsage // image layers by key
}

// usage caches the sizes of snapshots: measuring those of containers means
// that containerd walks their files.
type usage struct {
	asked atomic.Int64 // unix nanoseconds
	// first is closed when there is something to tell, or an error.
	first chan struct{}
	once  sync.Once

	// mu guards what follows.
	mu     sync.RWMutex
	fs     map[string]fsUsage // by snapshotter
	layers map[layerKey]stats.Layer
	err    error
}

func newUsage() *usage {
	return &usage{first: make(chan struct{}), fs: map[string]fsUsage{}, layers: map[layerKey]stats.Layer{}}
}

var _ stats.Layers = (*Service)(nil)

// Layer returns the size of a container's writable layer as it was measured last. One that is younger
// than the measurement is empty, as it was made; false before the first measurement.
func (s *Service) Layer(snapshotter, key string) (stats.Layer, bool) {
	s.usage.asked.Store(time.Now().UnixNano())
	s.usage.mu.RLock()
	defer s.usage.mu.RUnlock()
	if snapshotter == "" {
		snapshotter = s.deps.Snapshotter
	}
	if l, ok := s.usage.layers[layerKey{snapshotter, key}]; ok {
		return l, true
	}
	fs, ok := s.usage.fs[snapshotter]
	return stats.Layer{At: fs.at, Mountpoint: fs.root, Device: fs.device}, ok
}

// ImageFsInfo tells what images and writable layers occupy, at most
// UsageInterval ago; the default snapshotter comes first.
func (s *Service) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	u := s.usage
	u.asked.Store(time.Now().UnixNano())
	select {
	case <-u.first:
	case <-ctx.Done():
		return nil, fmt.Errorf("measure image file system: %w", ctx.Err())
	}
	u.mu.RLock()
	defer u.mu.RUnlock()
	if len(u.fs) == 0 {
		return nil, fmt.Errorf("measure image file system: %w", u.err)
	}
	resp := &runtimeapi.ImageFsInfoResponse{}
	for _, name := range s.snapshotters() {
		fs, ok := u.fs[name]
		if !ok {
			continue
		}
		resp.ImageFilesystems = append(resp.ImageFilesystems, fs.cri(fs.imageBytes, fs.imageInodes))
		resp.ContainerFilesystems = append(resp.ContainerFilesystems, fs.cri(fs.writableBytes, fs.writableNodes))
	}
	return resp, nil
}

func (f fsUsage) cri(used, inodes uint64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  f.at.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: f.root},
		UsedBytes:  &runtimeapi.UInt64Value{Value: used},
		InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}
}

// snapshotters lists all in use, the default first.
func (s *Service) snapshotters() []string {
	out := []string{s.deps.Snapshotter}
	for _, name := range *s.byHandler.Load() {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out[1:])
	return out
}

// measureLoop keeps the cache fresh while somebody asks.
func (s *Service) measureLoop(ctx context.Context) {
	tick := time.NewTicker(s.cfg.UsageInterval)
	defer tick.Stop()
	s.measureAll(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if now.Sub(time.Unix(0, s.usage.asked.Load())) < unasked {
				s.measureAll(ctx)
			}
		}
	}
}

// measureAll measures every snapshotter; one that fails keeps its old numbers.
func (s *Service) measureAll(ctx context.Context) {
	for _, name := range s.snapshotters() {
		if err := s.measure(ctx, name); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "disk usage is not known", "snapshotter", name, "err", err)
			s.usage.mu.Lock()
			s.usage.err = err
			s.usage.mu.Unlock()
		}
	}
	s.usage.once.Do(func() { close(s.usage.first) })
}

// measure asks for one snapshotter's snapshots.
func (s *Service) measure(ctx context.Context, name string) error {
	s.usage.mu.RLock()
	fs, known := s.usage.fs[name]
	s.usage.mu.RUnlock()
	if !known {
		root, err := s.deps.Snapshots.SnapshotterRoot(ctx, name)
		if err != nil {
			return err
		}
		fs = fsUsage{root: root, device: deviceOf(root)}
	}
	snapshots, err := s.deps.Snapshots.SnapshotUsages(ctx, name, fs.committed)
	if err != nil {
		return err
	}
	fs.at = time.Now()
	fs.imageBytes, fs.imageInodes, fs.writableBytes, fs.writableNodes = 0, 0, 0, 0
	layers := map[layerKey]stats.Layer{}
	fs.committed = map[string]containerd.SnapshotUsage{}
	for _, u := range snapshots {
		bytes, inodes := uint64(max(u.Bytes, 0)), uint64(max(u.Inodes, 0))
		if u.Committed {
			fs.committed[u.Key] = u
			fs.imageBytes += bytes
			fs.imageInodes += inodes
			continue
		}
		fs.writableBytes += bytes
		fs.writableNodes += inodes
		layers[layerKey{name, u.Key}] = stats.Layer{
			Bytes: bytes, Inodes: inodes, At: fs.at, Mountpoint: fs.root, Device: fs.device,
		}
	}
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	for k := range s.usage.layers {
		if k.snapshotter == name {
			delete(s.usage.layers, k)
		}
	}
	maps.Copy(s.usage.layers, layers)
	s.usage.fs[name] = fs
	return nil
}

// deviceOf returns the source of the mount that holds path; "" when unknown.
func deviceOf(path string) string {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return ""
	}
	var best *mountinfo.Info
	for _, m := range mounts {
		if best == nil || len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	if best == nil {
		return ""
	}
	return best.Source
}
