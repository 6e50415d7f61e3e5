// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// protocolV5 is the remote command protocol over WebSocket in which a client
// can close its input and read on. The library knows it only up to version 4,
// so sessions that ask for it are served here.
const protocolV5 = "v5.channel.k8s.io"

// tokenLife is how long a URL waits for its client, as in the library.
const tokenLife = time.Minute

// tokens remembers what URLs were handed out for. The library has the same
// tokens; a request reaches it only while the token is here, so that each URL
// is good for one session of either kind.
type tokens struct {
	// mu guards issued.
	mu     sync.Mutex
	issued map[string]ticket
}

// ticket is one URL's request.
type ticket struct {
	until time.Time
	exec  *runtimeapi.ExecRequest // one of the two, or neither: port forwarding
	att   *runtimeapi.AttachRequest
}

// forward says whether the URL is one of port forwarding.
func (k ticket) forward() bool { return k.exec == nil && k.att == nil }

// add takes the token from a URL and forgets those that nobody used.
func (t *tokens) add(url string, k ticket) {
	now := time.Now()
	k.until = now.Add(tokenLife)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.issued == nil {
		t.issued = map[string]ticket{}
	}
	for token, old := range t.issued {
		if now.After(old.until) {
			delete(t.issued, token)
		}
	}
	t.issued[path.Base(url)] = k
}

// take gives the ticket of a URL's path, once.
func (t *tokens) take(urlPath string) (ticket, bool) {
	token := path.Base(urlPath)
	t.mu.Lock()
	defer t.mu.Unlock()
	k, ok := t.issued[token]
	delete(t.issued, token)
	return k, ok && time.Now().Before(k.until)
}

// front is the HTTP handler: version 5 and tunnels are served here, the rest by
// the library.
type front struct {
	s   *Server
	lib http.Handler
}

func (f front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k, ok := f.s.tokens.take(r.URL.Path)
	switch {
	case !ok:
		http.NotFound(w, r)
	case k.forward() && offers(r, protocolTunnel):
		serveTunnel(w, r, f.lib)
	case !k.forward() && offers(r, protocolV5):
		f.spend(r)
		f.s.serveV5(w, r, k)
	default:
		f.lib.ServeHTTP(w, r)
	}
}

// spend uses up the library's token of a URL, which a request does that asks
// for no session: it keeps a thousand for a minute each, and refuses more.
func (f front) spend(r *http.Request) {
	r = r.Clone(r.Context())
	r.Header, r.Body = http.Header{}, http.NoBody
	f.lib.ServeHTTP(unheard{}, r)
}

// unheard is where the library answers nobody.
type unheard struct{}

func (unheard) Header() http.Header         { return http.Header{} }
func (unheard) Write(b []byte) (int, error) { return len(b), nil }
func (unheard) WriteHeader(int)             {}

// offers says whether a request asks for a WebSocket with a protocol.
func offers(r *http.Request, protocol string) bool {
	if !wsstream.IsWebSocketRequest(r) {
		return false
	}
	for p := range strings.SplitSeq(r.Header.Get(wsstream.WebSocketProtocolHeader), ",") {
		if strings.TrimSpace(p) == protocol {
			return true
		}
	}
	return false
}

// The channels of a remote command session.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelCount
)

// serveV5 runs one session.
func (s *Server) serveV5(w http.ResponseWriter, r *http.Request, k ticket) {
	stdin, stdout, stderr, tty := k.exec.GetStdin(), k.exec.GetStdout(), k.exec.GetStderr(), k.exec.GetTty()
	if k.att != nil {
		stdin, stdout, stderr, tty = k.att.GetStdin(), k.att.GetStdout(), k.att.GetStderr(), k.att.GetTty()
	}
	kinds := make([]wsstream.ChannelType, channelCount)
	for i, open := range map[int]wsstream.ChannelType{
		channelStdin: only(stdin, wsstream.ReadChannel), channelStdout: only(stdout, wsstream.WriteChannel),
		channelStderr: only(stderr, wsstream.WriteChannel), channelError: wsstream.WriteChannel,
		channelResize: only(tty, wsstream.ReadChannel),
	} {
		kinds[i] = open
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{protocolV5: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	_, ch, err := conn.Open(w, r)
	if err != nil {
		return // the library has answered
	}
	defer conn.Close() //nolint:errcheck // the session has ended
	// An empty frame tells the client that the session stands.
	_, _ = ch[channelError].Write(nil)

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var resize chan Size
	if tty {
		resize = make(chan Size)
		go readSizes(ctx, ch[channelResize], resize)
	}
	in, out, errw := reader(stdin, ch[channelStdin]), writer(stdout, ch[channelStdout]), writer(stderr, ch[channelStderr])
	if k.exec != nil {
		err = (*sessions)(s).Exec(ctx, k.exec.GetContainerId(), k.exec.GetCmd(), in, out, errw, tty, resize)
	} else {
		err = (*sessions)(s).Attach(ctx, k.att.GetContainerId(), in, out, errw, tty, resize)
	}
	writeStatus(ch[channelError], err)
}

func only(open bool, t wsstream.ChannelType) wsstream.ChannelType {
	if open {
		return t
	}
	return wsstream.IgnoreChannel
}

func reader(open bool, c io.Reader) io.Reader {
	if open {
		return c
	}
	return nil
}

func writer(open bool, c io.WriteCloser) io.WriteCloser {
	if open {
		return c
	}
	return nil
}

// readSizes decodes the terminal's sizes until the connection ends.
func readSizes(ctx context.Context, r io.Reader, out chan<- Size) {
	defer close(out)
	dec := json.NewDecoder(r)
	for {
		var size Size
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case out <- size:
		case <-ctx.Done():
			return
		}
	}
}

// writeStatus ends a session with a metav1.Status, of which only the fields
// that clients read are here.
func writeStatus(w io.Writer, err error) {
	type cause struct {
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	type status struct {
		Status  string   `json:"status"`
		Message string   `json:"message,omitempty"`
		Reason  string   `json:"reason,omitempty"`
		Details *details `json:"details,omitempty"`
		Code    int      `json:"code,omitempty"`
	}
	st := status{Status: "Success"}
	var exit *exitError
	switch {
	case errors.As(err, &exit):
		st = status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(exit.ExitStatus())}}},
		}
	case err != nil:
		st = status{
			Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: "Internal error occurred: " + err.Error(),
		}
	}
	if b, merr := json.Marshal(st); merr == nil {
		_, _ = w.Write(b)
	}
}
