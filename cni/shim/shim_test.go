// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answering serves one answer, byte for byte, to each connection.
func answering(t *testing.T, answer string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1<<16)
			_, _ = c.Read(buf) // the request has its own tests
			_, _ = c.Write([]byte(answer))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return path
}

// runShim runs one call and returns its exit code and what it printed.
func runShim(verb, socket, queue string) (int, string) {
	env := map[string]string{
		"CNI_COMMAND": verb, "CNI_CONTAINERID": "id", "CNI_NETNS": "/ns", "CNI_IFNAME": "eth0", "CNI_PATH": "/bin",
		"TRACEPARENT": "00-a-b-01\r\nX-Evil: 1",
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"n","type":"t","socket":%q,"queue":%q}`, socket, queue)
	var out, stderr bytes.Buffer
	code := Run(Process{
		Getenv: func(k string) string { return env[k] }, Stdin: strings.NewReader(conf), Stdout: &out, Stderr: &stderr,
	})
	return code, out.String() + stderr.String()
}

// TestAnswers: whatever is on the socket, the program says something that a
// runtime understands.
func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		exit, code   int
	}{
		{"success", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", 0, 0},
		{"success without length", "HTTP/1.0 200 OK\r\n\r\n{}", 0, 0},
		{"error", "HTTP/1.0 422 X\r\n\r\n{\"code\":7,\"msg\":\"no\"}", 1, 7},
		{"cut off", "HTTP/1.0 200 OK\r\nContent-Length: 20\r\n\r\n{", 1, CodeTryAgain},
		{"cut off in the head", "HTTP/1.0 200 OK\r\nConte", 1, CodeTryAgain},
		{"nothing", "", 1, CodeTryAgain},
		{"garbage", "\x00\xff\x00garbage", 1, CodeTryAgain},
		{"another server", "HTTP/1.0 404 Not Found\r\n\r\nnothing here", 1, CodeInternal},
		{"bad length", "HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\n{}", 1, CodeTryAgain},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out := runShim(Check, answering(t, tc.answer), t.TempDir())
			var e Error
			if err := json.Unmarshal([]byte(out), &e); err != nil {
				t.Fatalf("printed %q: %v", out, err)
			}
			if code != tc.exit || e.Code != tc.code {
				t.Errorf("exit %d, code %d, printed %s; want %d and %d", code, e.Code, out, tc.exit, tc.code)
			}
		})
	}
}

// TestDeleteIsQueued when the daemon is away, dies in the middle, or says that
// it is starting; other errors are the runtime's to see.
func TestDeleteIsQueued(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		queued       int
	}{
		{"dies", "HTTP/1.0 2", 1},
		{"starting", "HTTP/1.0 422 X\r\n\r\n{\"code\":11,\"msg\":\"starting\"}", 1},
		{"refuses", "HTTP/1.0 422 X\r\n\r\n{\"code\":7,\"msg\":\"no\"}", 0},
		{"deletes", "HTTP/1.0 200 OK\r\n\r\n", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := Queue{Dir: filepath.Join(t.TempDir(), "q")}
			code, out := runShim(Del, answering(t, tc.answer), q.Dir)
			var calls []Call
			if err := q.Each(func(c Call) error { calls = append(calls, c); return nil }); err != nil {
				t.Fatal(err)
			}
			if len(calls) != tc.queued || (code == 0) != (tc.name != "refuses") {
				t.Errorf("exit %d, printed %q, queued %v", code, out, calls)
			}
			if tc.queued == 1 && (calls[0].ContainerID != "id" || calls[0].Verb != Del) {
				t.Errorf("queued %+v", calls[0])
			}
		})
	}
}

// filled returns a queue into which 50 writers at once put 25 deletes.
func filled(t *testing.T) Queue {
	t.Helper()
	q := Queue{Dir: filepath.Join(t.TempDir(), "q")}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			lock, err := q.Lock(false, lockPatience)
			if err != nil {
				t.Error(err)
				return
			}
			c := Call{Verb: Del, ContainerID: fmt.Sprint(i % 25), IfName: "eth0", Config: json.RawMessage("{}")}
			if err := errors.Join(q.Put(c), lock.Unlock()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return q
}

func TestQueueLock(t *testing.T) {
	q := filled(t)
	lock, err := q.Lock(true, lockPatience)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.Lock(false, 0); err == nil {
		t.Error("a second holder beside one who wants to be alone")
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	if err := (Queue{Dir: "/none/q"}).Each(nil); err != nil {
		t.Errorf("a queue that nobody made: %v", err)
	}
}

// TestQueueKeepsWhatFails: what fails stays, what is no delete goes.
func TestQueueKeepsWhatFails(t *testing.T) {
	q := filled(t)
	for name, body := range map[string]string{"bad.json": "{", ".put-123": "x"} {
		if err := os.WriteFile(filepath.Join(q.Dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(q.Forget("7", "eth0"), q.Forget("7", "eth0")); err != nil {
		t.Error(err)
	}
	boom := errors.New("boom")
	seen := 0
	err := q.Each(func(c Call) error {
		seen++
		if c.ContainerID == "3" {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) || seen != 24 {
		t.Errorf("Each = %v after %d, want the error after all 24", err, seen)
	}
	entries, err := os.ReadDir(q.Dir)
	if err != nil || len(entries) != 2 { // the lock and the one that failed
		t.Errorf("left %v, %v", entries, err)
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 422\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		status, body, ok := parseAnswer(raw)
		if ok && (!bytes.HasSuffix(raw, body) || status < 0 && len(body) > len(raw)) {
			t.Errorf("parseAnswer(%q) = %d, %q", raw, status, body)
		}
	})
}
