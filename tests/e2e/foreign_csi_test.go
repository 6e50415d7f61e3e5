// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// foreignDriver is another vendor's driver in a privileged pod, and a volume of its.
const foreignDriver = `
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: mock.csi.k8s.io}
spec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: foreign}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  csi: {driver: mock.csi.k8s.io, volumeHandle: "1"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: foreign, namespace: NAMESPACE}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: foreign
  resources: {requests: {storage: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: driver, namespace: NAMESPACE}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: ` + cluster.ForeignCSIImage + `
      securityContext: {privileged: true}
      volumeMounts: [{name: kubelet, mountPath: /var/lib/kubelet, mountPropagation: Bidirectional}]
  volumes: [{name: kubelet, hostPath: {path: /var/lib/kubelet}}]
`

// foreignUser has a claimed and an inline volume of the other driver, and one of ours.
const foreignUser = `
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: ` + cluster.BusyboxImage + `
      command: [sh, -c, "trap exit TERM; while :; do sleep 3600 & wait; done"]
      volumeMounts: [{name: foreign, mountPath: /foreign}, {name: inline, mountPath: /inline}, {name: own, mountPath: /own}]
  volumes:
    - {name: foreign, persistentVolumeClaim: {claimName: foreign}}
    - {name: inline, csi: {driver: mock.csi.k8s.io}}
    - {name: own, persistentVolumeClaim: {claimName: own}}
`

// TestForeignCSI runs another driver under the same kubelet, in a pod that our runtime
// made: its mounts travel out of its pod and into others, beside a volume of ours, and go
// again, also across the agent's death.
func TestForeignCSI(t *testing.T) {
	onlyNodeagent(t)
	ns := namespace(t)
	t.Cleanup(func() {
		for _, object := range []string{"pv/foreign", "csidriver/mock.csi.k8s.io"} {
			if _, err := shared.Kubectl(context.Background(), "delete", object, "--wait=false"); err != nil {
				t.Log(err)
			}
		}
	})
	if err := shared.Apply(t.Context(), strings.ReplaceAll(foreignDriver, "NAMESPACE", ns)); err != nil {
		t.Fatal(err)
	}
	ready(t, ns, "driver")
	apply(t, ns, pvc("own", "nodeagent", "64Mi")+"---"+foreignUser)
	ready(t, ns, "user")
	reads(t, ns, "user", "cat /foreign/volume", "1")
	reads(t, ns, "user", "grep -c csi- /inline/volume; echo ours > /own/x && cat /own/x", "1\nours")

	killRuntime(t, shared.Nodes[0])
	eventually(t, time.Minute, func(ctx context.Context) error {
		_, err := shared.Kubectl(ctx, "-n", ns, "exec", "user", "--", "true") // recovered
		return err
	})
	reads(t, ns, "user", "cat /foreign/volume /own/x", "1\nours")
	kubectl(t, ns, "delete", "pod", "user")
	apply(t, ns, foreignUser)
	ready(t, ns, "user")
	reads(t, ns, "user", "cat /foreign/volume /own/x", "1\nours")
	kubectl(t, ns, "delete", "pod", "user") // before its driver, who has to unmount
	kubectl(t, ns, "delete", "pvc", "--all")
}
