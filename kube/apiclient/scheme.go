// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"fmt"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// newScheme knows the groups that the agent works with. (To register single
// kinds would not spare the others: each package names all of its own.)
func newScheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	groups := runtime.NewSchemeBuilder(corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme,
		storagev1.AddToScheme, snapshotv1.AddToScheme, groupv1.AddToScheme, metav1.AddMetaToScheme)
	if err := groups.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	return s, nil
}
