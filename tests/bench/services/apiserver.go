// SPDX-License-Identifier: Apache-2.0

package services

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
)

// apiServer serves lists and watches of a fixed set of kinds from memory, in
// protobuf and JSON, streamed lists included: what clients see of a real one
// that is never the bottleneck. Objects' bytes are made once, when they are
// added.
type apiServer struct {
	mu      sync.Mutex // guards what follows
	version int64
	kinds   map[string]*kind
	changed chan struct{} // closed and replaced at each change
}

// kind is one resource.
type kind struct {
	gv    schema.GroupVersion
	one   runtime.Object
	list  runtime.Object
	items []*item
}

// item is an object with its bytes by media type: as such and as a watch event.
type item struct {
	object  runtime.Object
	name    string
	version int64
	frames  map[string][]byte
}

const (
	mediaJSON     = "application/json"
	mediaProtobuf = "application/vnd.kubernetes.protobuf"
)

func newAPIServer() *apiServer {
	core, discovery, networking := corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion
	return &apiServer{version: 1, changed: make(chan struct{}), kinds: map[string]*kind{
		"services":        {gv: core, one: &corev1.Service{}, list: &corev1.ServiceList{}},
		"nodes":           {gv: core, one: &corev1.Node{}, list: &corev1.NodeList{}},
		"pods":            {gv: core, one: &corev1.Pod{}, list: &corev1.PodList{}},
		"namespaces":      {gv: core, one: &corev1.Namespace{}, list: &corev1.NamespaceList{}},
		"endpointslices":  {gv: discovery, one: &discoveryv1.EndpointSlice{}, list: &discoveryv1.EndpointSliceList{}},
		"networkpolicies": {gv: networking, one: &networkingv1.NetworkPolicy{}, list: &networkingv1.NetworkPolicyList{}},
		"servicecidrs":    {gv: networking, one: &networkingv1.ServiceCIDR{}, list: &networkingv1.ServiceCIDRList{}},
	}}
}

// add adds objects to a resource; clients that watch hear of them at once.
func (s *apiServer) add(resource string, objects ...runtime.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[resource]
	for _, o := range objects {
		s.version++
		acc, err := meta.Accessor(o)
		if err != nil {
			return fmt.Errorf("add to %s: %w", resource, err)
		}
		acc.SetResourceVersion(strconv.FormatInt(s.version, 10))
		acc.SetUID(types.UID(fmt.Sprint("uid-", s.version)))
		it := &item{object: o, name: acc.GetName(), version: s.version, frames: map[string][]byte{}}
		for _, media := range []string{mediaJSON, mediaProtobuf} {
			if it.frames[media], err = k.frame(media, watch.Added, o); err != nil {
				return fmt.Errorf("encode for %s: %w", resource, err)
			}
		}
		k.items = append(k.items, it)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}

// frame is an event of a watch.
func (k *kind) frame(media string, what watch.EventType, o runtime.Object) ([]byte, error) {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), media)
	if !ok || info.StreamSerializer == nil {
		return nil, fmt.Errorf("no stream of %s", media)
	}
	raw, err := runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, k.gv), o)
	if err != nil {
		return nil, err
	}
	event := &metav1.WatchEvent{Type: string(what), Object: runtime.RawExtension{Raw: raw}}
	var buf bytes.Buffer
	err = info.StreamSerializer.Encode(event, info.StreamSerializer.NewFrameWriter(&buf))
	return buf.Bytes(), err
}

// ServeHTTP answers GET of lists, single objects and watches.
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	media := mediaJSON
	if strings.Contains(r.Header.Get("Accept"), mediaProtobuf) {
		media = mediaProtobuf
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	i := len(parts) - 1
	name := ""
	if s.kinds[parts[i]] == nil && i > 0 {
		name, i = parts[i], i-1
	}
	k := s.kinds[parts[i]]
	switch {
	case r.Method != http.MethodGet || k == nil:
		refuse(w, http.StatusNotFound)
	case name != "":
		s.one(w, media, k, name)
	case r.URL.Query().Get("watch") == "true" || r.URL.Query().Get("watch") == "1":
		s.watch(w, r, media, k)
	default:
		s.list(w, media, k)
	}
}

func refuse(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", mediaJSON)
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // the client is told by the code, too
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Reason: metav1.StatusReasonNotFound, Code: int32(code), Message: http.StatusText(code), //nolint:gosec // a code
	})
}

func (k *kind) write(w http.ResponseWriter, media string, o runtime.Object) {
	info, _ := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), media)
	w.Header().Set("Content-Type", media)
	_ = scheme.Codecs.EncoderForVersion(info.Serializer, k.gv).Encode(o, w) // the client asks again
}

func (s *apiServer) one(w http.ResponseWriter, media string, k *kind, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range k.items {
		if it.name == name {
			k.write(w, media, it.object)
			return
		}
	}
	refuse(w, http.StatusNotFound)
}

func (s *apiServer) list(w http.ResponseWriter, media string, k *kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := k.list.DeepCopyObject()
	objects := make([]runtime.Object, 0, len(k.items))
	for _, it := range k.items {
		objects = append(objects, it.object)
	}
	if err := meta.SetList(list, objects); err != nil {
		refuse(w, http.StatusInternalServerError)
		return
	}
	if acc, err := meta.ListAccessor(list); err == nil {
		acc.SetResourceVersion(strconv.FormatInt(s.version, 10))
	}
	k.write(w, media, list)
}

// watch streams what there is, when asked for, and then what is added.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, media string, k *kind) {
	w.Header().Set("Content-Type", media+";stream=watch")
	if media == mediaJSON {
		w.Header().Set("Content-Type", media)
	}
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	from, _ := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64)
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	if initial {
		from = 0
	}
	for {
		s.mu.Lock()
		var news []*item
		for i := len(k.items) - 1; i >= 0 && k.items[i].version > from; i-- {
			news = append(news, k.items[i])
		}
		version, changed := s.version, s.changed
		s.mu.Unlock()
		for _, it := range slices.Backward(news) {
			if _, err := w.Write(it.frames[media]); err != nil {
				return
			}
		}
		from = version
		if initial {
			initial = false
			if err := k.bookmark(w, media, version); err != nil {
				return
			}
		}
		if err := flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// bookmark says that everything there was has been sent.
func (k *kind) bookmark(w http.ResponseWriter, media string, version int64) error {
	o := k.one.DeepCopyObject()
	acc, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	acc.SetResourceVersion(strconv.FormatInt(version, 10))
	acc.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	data, err := k.frame(media, watch.Bookmark, o)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
