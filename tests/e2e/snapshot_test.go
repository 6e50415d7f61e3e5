// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// classes are cluster-wide: a class of each pool, and what snapshots and attributes need.
const classes = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-xfs}
provisioner: csi.nodeagent.dev
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
parameters: {pool: xfs}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-btrfs}
provisioner: csi.nodeagent.dev
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
parameters: {pool: btrfs}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: e2e}
driver: csi.nodeagent.dev
deletionPolicy: Delete
---
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshotClass
metadata: {name: e2e}
driver: csi.nodeagent.dev
deletionPolicy: Delete
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: e2e-slow}
driverName: csi.nodeagent.dev
parameters: {writeIOPS: "300"}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttributesClass
metadata: {name: e2e-fast}
driverName: csi.nodeagent.dev
parameters: {writeIOPS: "900"}
`

// useClasses makes the classes for one test.
func useClasses(t *testing.T) {
	t.Helper()
	if err := shared.Apply(t.Context(), classes); err != nil {
		t.Fatal(err)
	}
}

// pvc is a claim; source, if any, is the kind and name of what it begins with.
func pvc(name, class, size string, source ...string) string {
	from := ""
	if len(source) == 2 {
		group := ""
		if source[0] == "VolumeSnapshot" {
			group = "apiGroup: snapshot.storage.k8s.io, "
		}
		from = fmt.Sprintf("  dataSource: {%skind: %s, name: %s}\n", group, source[0], source[1])
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s, labels: {app: db}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: %s
  resources: {requests: {storage: %s}}
%s`, name, class, size, from)
}

// user is a pod with claims at /claim, one directory each.
func user(name, script string, claims ...string) string {
	var mounts, volumes strings.Builder
	for _, c := range claims {
		fmt.Fprintf(&mounts, "        - {name: %s, mountPath: /%s}\n", c, c)
		fmt.Fprintf(&volumes, "    - {name: %s, persistentVolumeClaim: {claimName: %s}}\n", c, c)
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: %s
      command: [sh, -c, %q]
      volumeMounts:
%s  volumes:
%s`, name, cluster.BusyboxImage, "trap exit TERM; "+script+"\nwhile :; do sleep 3600 & wait; done", mounts.String(), volumes.String())
}

// noVolumes waits until the node keeps no volume and no snapshot.
func noVolumes(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := shared.Nodes[0].Run(ctx, filepath.Join(shared.Bin, "nodeagent"), "volumes", "-o", "json")
		if err != nil {
			return err
		}
		var v struct{ Volumes, Snapshots []struct{ Name string } }
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return err
		}
		if len(v.Volumes)+len(v.Snapshots) > 0 {
			return fmt.Errorf("the node keeps %+v", v)
		}
		return nil
	})
}

// snapshotReady waits for a VolumeSnapshot or VolumeGroupSnapshot.
func snapshotReady(t *testing.T, ns, object string) {
	t.Helper()
	kubectl(t, ns, "wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", object)
}

// reads fails unless a pod's script prints want.
func reads(t *testing.T, ns, pod, script, want string) {
	t.Helper()
	if out := kubectl(t, ns, "exec", pod, "--", "sh", "-c", script); strings.TrimSpace(out) != want {
		t.Errorf("%s reads %q, not %q, of %s", pod, strings.TrimSpace(out), want, script)
	}
}

// TestSnapshot has a snapshot's life on each pool that has snapshots.
func TestSnapshot(t *testing.T) {
	onlyNodeagent(t)
	useClasses(t)
	t.Run("on", func(t *testing.T) {
		for _, class := range []string{"e2e-xfs", "e2e-btrfs", "nodeagent"} {
			t.Run(class, func(t *testing.T) {
				t.Parallel()
				snapshotLife(t, class)
			})
		}
	})
	noVolumes(t)
}

// snapshotLife takes a snapshot of a volume in use, restores it larger than it was, clones
// the volume, and deletes the source before its copies.
func snapshotLife(t *testing.T, class string) {
	t.Helper()
	ns := namespace(t)
	apply(t, ns, pvc("data", class, "64Mi")+user("writer", "echo old > /data/file; sync", "data"))
	ready(t, ns, "writer")
	reads(t, ns, "writer", "cat /data/file", "old")
	apply(t, ns, `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: snap}
spec: {volumeSnapshotClassName: e2e, source: {persistentVolumeClaimName: data}}
`)
	snapshotReady(t, ns, "volumesnapshot/snap")
	kubectl(t, ns, "exec", "writer", "--", "sh", "-c", "echo new > /data/file; sync")
	apply(t, ns, pvc("restored", class, "128Mi", "VolumeSnapshot", "snap")+
		pvc("cloned", class, "64Mi", "PersistentVolumeClaim", "data")+user("reader", "", "restored", "cloned"))
	ready(t, ns, "reader")
	reads(t, ns, "reader", "cat /restored/file /cloned/file", "old\nnew")
	reads(t, ns, "reader", "test $(df -m /restored | tail -1 | awk '{print $2}') -gt 90 && echo larger", "larger")

	kubectl(t, ns, "delete", "pod", "writer")
	kubectl(t, ns, "delete", "pvc", "data")
	kubectl(t, ns, "delete", "volumesnapshot", "snap", "--timeout=60s")
	reads(t, ns, "reader", "cat /restored/file /cloned/file; echo more > /restored/file && sync && cat /restored/file", "old\nnew\nmore")
	kubectl(t, ns, "delete", "pod", "reader")
	kubectl(t, ns, "delete", "pvc", "--all")
}

// A snapshot that cannot be had says why, on the snapshot that the person made.
func TestSnapshotRefused(t *testing.T) {
	onlyNodeagent(t)
	ns := namespace(t)
	useClasses(t)
	apply(t, ns, pvc("data", "e2e-xfs", "64Mi")+user("writer", "", "data"))
	ready(t, ns, "writer")
	apply(t, ns, `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: e2e-odd}
driver: csi.nodeagent.dev
deletionPolicy: Delete
parameters: {freeze: perhaps}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: odd}
spec: {volumeSnapshotClassName: e2e-odd, source: {persistentVolumeClaimName: data}}
`)
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "-n", ns, "events", "--for=volumesnapshot/odd")
		if err == nil && !strings.Contains(out, `"perhaps" is neither auto nor never`) {
			err = errors.New("events: " + out)
		}
		return err
	})
	kubectl(t, ns, "delete", "volumesnapshot", "odd", "--timeout=60s")
	kubectl(t, ns, "delete", "volumesnapshotclass", "e2e-odd")
}

// TestGroupSnapshot takes two volumes at one moment while a pod writes to them in turn: what
// was written to the second was written to the first before, and so in the restored ones.
func TestGroupSnapshot(t *testing.T) {
	onlyNodeagent(t)
	ns := namespace(t)
	useClasses(t)
	apply(t, ns, pvc("first", "e2e-xfs", "64Mi")+pvc("second", "e2e-xfs", "64Mi")+user("writer",
		"i=0; while i=$((i+1)); do echo $i > /first/n; sync /first/n; echo $i > /second/n; sync /second/n; done &", "first", "second"))
	ready(t, ns, "writer")
	apply(t, ns, `
apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: both}
spec: {volumeGroupSnapshotClassName: e2e, source: {selector: {matchLabels: {app: db}}}}
`)
	snapshotReady(t, ns, "volumegroupsnapshot/both")
	members := map[string]string{} // by claim
	eventually(t, time.Minute, func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "-n", ns, "get", "volumesnapshot", "-o",
			`jsonpath={range .items[?(@.status.readyToUse==true)]}{.spec.source.persistentVolumeClaimName} {.metadata.name}{"\n"}{end}`)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 {
				members[f[0]] = f[1]
			}
		}
		if err == nil && len(members) != 2 {
			err = fmt.Errorf("members %v", members)
		}
		return err
	})
	kubectl(t, ns, "delete", "pod", "writer")
	apply(t, ns, pvc("first-then", "e2e-xfs", "64Mi", "VolumeSnapshot", members["first"])+
		pvc("second-then", "e2e-xfs", "64Mi", "VolumeSnapshot", members["second"])+user("reader", "", "first-then", "second-then"))
	ready(t, ns, "reader")
	out := strings.Fields(kubectl(t, ns, "exec", "reader", "--", "cat", "/first-then/n", "/second-then/n"))
	if len(out) != 2 {
		t.Fatalf("the restored volumes hold %q", out)
	}
	first, err1 := strconv.Atoi(out[0])
	second, err2 := strconv.Atoi(out[1])
	if err := errors.Join(err1, err2); err != nil || second > first || first > second+1 {
		t.Errorf("the volumes are of different moments: %d and %d: %v", first, second, err)
	}
	kubectl(t, ns, "delete", "pod", "reader")
	kubectl(t, ns, "delete", "volumegroupsnapshot", "both", "--timeout=60s")
	kubectl(t, ns, "delete", "pvc", "--all")
	noVolumes(t)
}

// TestVolumeAttributesClass changes the limits of a volume in use.
func TestVolumeAttributesClass(t *testing.T) {
	onlyNodeagent(t)
	ns := namespace(t)
	useClasses(t)
	apply(t, ns, strings.Replace(pvc("data", "e2e-xfs", "64Mi"), "spec:\n", "spec:\n  volumeAttributesClassName: e2e-slow\n", 1)+user("writer", "", "data"))
	ready(t, ns, "writer")
	limited := func(want string) {
		t.Helper()
		eventually(t, time.Minute, func(ctx context.Context) error {
			p, err := shared.Client.CoreV1().Pods(ns).Get(ctx, "writer", metav1.GetOptions{})
			if err != nil {
				return err
			}
			got, err := shared.Nodes[0].IOLimits(string(p.UID))
			if err == nil && !strings.Contains(got, want) {
				err = fmt.Errorf("the pod's limits are %q, want %s", got, want)
			}
			return err
		})
	}
	limited(" 300")
	kubectl(t, ns, "patch", "pvc", "data", "-p", `{"spec":{"volumeAttributesClassName":"e2e-fast"}}`)
	limited(" 900")
	eventually(t, time.Minute, func(ctx context.Context) error {
		c, err := shared.Client.CoreV1().PersistentVolumeClaims(ns).Get(ctx, "data", metav1.GetOptions{})
		if err == nil && (c.Status.CurrentVolumeAttributesClassName == nil || *c.Status.CurrentVolumeAttributesClassName != "e2e-fast" ||
			c.Status.ModifyVolumeStatus != nil || c.Status.Phase != corev1.ClaimBound) {
			err = fmt.Errorf("the claim says %+v", c.Status)
		}
		return err
	})
}
