// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// limitsEvery is how often limits are written again: pods' cgroups may come
// after their volumes, and cgroup v1 wants every container's own.
const limitsEvery = 10 * time.Second

// Modify changes a volume's mutable parameters; only what is named changes. The
// pods that use the volume feel it at once.
func (m *Manager) Modify(ctx context.Context, id string, mutable map[string]string) error {
	release, err := m.locks.lock(ctx, id, "modify volume")
	if err != nil {
		return err
	}
	defer release()
	o, err := m.find(KindVolume, id)
	if err != nil {
		return err
	}
	rec := o.rec
	for _, k := range sortedKeys(mutable) {
		if strings.HasPrefix(k, labelPrefix) {
			continue
		}
		if err := rec.Params.Limits.set(k, mutable[k]); err != nil {
			return err
		}
	}
	if rec.Params.Limits == o.rec.Params.Limits {
		return nil
	}
	if err := m.save(o.pool, rec); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "volume limits changed", "volume", id)
	m.writeLimits(ctx, m.peek(id), true)
	return nil
}

// applyLimits writes a volume's limits, if it has any, to the cgroups of the
// pods that use it.
func (m *Manager) applyLimits(ctx context.Context, o *object) {
	if o.rec.Params.Limits != (Limits{}) {
		m.writeLimits(ctx, o, false)
	}
}

func (m *Manager) keepLimits(ctx context.Context) {
	tick := time.NewTicker(limitsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range m.pools {
			for _, o := range m.objectsOf(p) {
				if o.rec.Kind == KindVolume && o.rec.Params.Limits != (Limits{}) {
					m.writeLimits(ctx, o, false)
				}
			}
		}
	}
}

// writeLimits is best effort by design: a limit that cannot be set must not keep
// a pod from its data, but it shows in the volume's health.
func (m *Manager) writeLimits(ctx context.Context, o *object, lift bool) {
	st, err := m.state.get(o.rec.ID)
	if err != nil || len(st.Targets) == 0 {
		return
	}
	atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec))
	var errs []error
	if err == nil && len(atts) == 0 && !lift {
		err = errors.New("the volume has no device of its own to limit")
	}
	errs = append(errs, err)
	for _, path := range st.targetPaths() {
		uid := st.Targets[path].PodUID
		if uid == "" {
			continue
		}
		for _, a := range atts {
			dev := fmt.Sprintf("%d:%d", unix.Major(a.Rdev), unix.Minor(a.Rdev))
			errs = append(errs, limitPod(m.cfg.CgroupRoot, uid, dev, o.rec.Params.Limits))
		}
	}
	if err := errors.Join(errs...); err != nil {
		m.setFault(o.rec.ID, Condition{Type: Degraded, Reason: "LimitsNotApplied", Message: err.Error()})
		return
	}
	m.clearFault(o.rec.ID, "LimitsNotApplied")
}

// limitPod writes the limits of one device to one pod's cgroup. A pod without a
// cgroup (not there yet, or gone) is success: the next round comes.
func limitPod(root, uid, dev string, l Limits) error {
	if !validID(uid) {
		return fmt.Errorf("pod uid %q", uid)
	}
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		if !slices.Contains(strings.Fields(string(b)), "io") {
			return errors.New("cgroup v2 has no io controller here")
		}
		line := fmt.Sprintf("%s rbps=%s wbps=%s riops=%s wiops=%s", dev,
			orMax(l.ReadBandwidth), orMax(l.WriteBandwidth), orMax(l.ReadIOPS), orMax(l.WriteIOPS))
		var errs []error
		for _, dir := range podCgroups(root, uid) {
			errs = append(errs, writeCgroup(filepath.Join(dir, "io.max"), line))
		}
		return errors.Join(errs...)
	}
	v1 := filepath.Join(root, "blkio")
	if _, err := os.Stat(filepath.Join(v1, "cgroup.procs")); err != nil {
		return errors.New("no blkio controller is mounted")
	}
	var errs []error
	for _, dir := range podCgroups(v1, uid) {
		// v1 does not pass throttling down, so every container gets its own.
		errs = append(errs, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil //nolint:nilerr // a container that ends meanwhile needs no limit
			}
			return limitV1(path, dev, l)
		}))
	}
	return errors.Join(errs...)
}

func limitV1(dir, dev string, l Limits) error {
	var errs []error
	for file, n := range map[string]int64{
		"blkio.throttle.read_bps_device": l.ReadBandwidth, "blkio.throttle.write_bps_device": l.WriteBandwidth,
		"blkio.throttle.read_iops_device": l.ReadIOPS, "blkio.throttle.write_iops_device": l.WriteIOPS,
	} {
		errs = append(errs, writeCgroup(filepath.Join(dir, file), fmt.Sprintf("%s %d", dev, n)))
	}
	return errors.Join(errs...)
}

func orMax(n int64) string {
	if n == 0 {
		return "max"
	}
	return fmt.Sprint(n)
}

func writeCgroup(path, line string) error {
	err := os.WriteFile(path, []byte(line), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil // the pod or the device went away
	}
	return err
}

// podCgroups finds a pod's cgroup under both drivers' names, also when the
// kubelet's root is some levels down.
func podCgroups(root, uid string) []string {
	dashed := strings.ReplaceAll(uid, "-", "_")
	names := []string{
		"kubepods/pod" + uid, "kubepods/burstable/pod" + uid, "kubepods/besteffort/pod" + uid,
		"kubepods.slice/kubepods-pod" + dashed + ".slice",
		"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + dashed + ".slice",
		"kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + dashed + ".slice",
	}
	var out []string
	for _, above := range []string{"", "*", "*/*", "*/*/*"} {
		for _, n := range names {
			found, err := filepath.Glob(filepath.Join(root, above, n))
			if err == nil {
				out = append(out, found...)
			}
		}
		if len(out) > 0 {
			break
		}
	}
	return out
}
