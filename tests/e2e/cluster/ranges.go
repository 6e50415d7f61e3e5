// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
)

// openRanges gives requests for the rest of a blob, "bytes=N-", the end that the registry's
// handler wants to be told: containerd asks so for whole layers, to see whether it may fetch them in parts.
func openRanges(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin, open := strings.CutSuffix(r.Header.Get("Range"), "-")
		if open && r.Method == http.MethodGet {
			head, size := httptest.NewRecorder(), int64(0)
			inner.ServeHTTP(head, &http.Request{Method: http.MethodHead, URL: r.URL, Host: r.Host, Header: http.Header{}})
			if _, err := fmt.Sscan(head.Header().Get("Content-Length"), &size); err == nil && size > 0 {
				r.Header.Set("Range", fmt.Sprintf("%s-%d", begin, size-1))
			}
		}
		inner.ServeHTTP(w, r)
	})
}
