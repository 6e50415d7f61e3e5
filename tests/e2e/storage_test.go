// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// claim is a claim of 64 MiB and a pod on it.
const claim = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: nodeagent
  resources: {requests: {storage: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  containers:
    - name: main
      image: ` + cluster.BusyboxImage + `
      command: [sh, -c, "trap exit TERM; while :; do sleep 3600 & wait; done"]
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// TestVolume follows a volume through its life: provisioned, written, full, handed to
// another pod across the agent's death, grown, and deleted with its claim.
func TestVolume(t *testing.T) {
	onlyNodeagent(t)
	ns := namespace(t)
	exec := func(pod, script string) (string, error) {
		return shared.Kubectl(t.Context(), "-n", ns, "exec", pod, "--", "sh", "-c", script)
	}
	apply(t, ns, fmt.Sprintf(claim, "first"))
	ready(t, ns, "first")
	out, err := exec("first", "echo kept > /data/file && sync && id -G && stat -c %g /data && dd if=/dev/zero of=/data/fill bs=1M count=100 2>&1; rm /data/fill")
	if err != nil {
		t.Fatal(err)
	}
	has(t, "first pod", out, "2000", "No space left on device")

	kubectl(t, ns, "delete", "pod", "first")
	killRuntime(t, shared.Nodes[0])
	apply(t, ns, fmt.Sprintf(claim, "second"))
	ready(t, ns, "second")
	if out, err := exec("second", "cat /data/file"); err != nil || out != "kept\n" {
		t.Errorf("the second pod reads %q: %v", out, err)
	}

	kubectl(t, ns, "delete", "pod", "second")
	kubectl(t, ns, "patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}`)
	apply(t, ns, fmt.Sprintf(strings.Replace(claim, "64Mi", "128Mi", 1), "third"))
	ready(t, ns, "third")
	eventually(t, time.Minute, func(ctx context.Context) error {
		pvc, err := shared.Client.CoreV1().PersistentVolumeClaims(ns).Get(ctx, "data", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := pvc.Status.Capacity[corev1.ResourceStorage]; got.String() != "128Mi" {
			return fmt.Errorf("capacity is %s, conditions %v", got.String(), pvc.Status.Conditions)
		}
		out, err := exec("third", "cat /data/file; df -m /data | tail -1")
		if f := strings.Fields(out); err == nil && (len(f) < 3 || f[0] != "kept" || len(f[2]) != 3) {
			err = fmt.Errorf("the third pod sees %q", out)
		}
		return err
	})
	kubectl(t, ns, "delete", "pod", "third")
	kubectl(t, ns, "delete", "pvc", "data")
	eventually(t, time.Minute, func(ctx context.Context) error {
		pvs, err := shared.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err == nil && len(pvs.Items) > 0 {
			err = errors.New("the volume " + pvs.Items[0].Name + " is " + string(pvs.Items[0].Status.Phase))
		}
		return err
	})
}
