// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// command prepares a kubectl that the test speaks with.
func command(t *testing.T, ns string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), slower*40*time.Second)
	t.Cleanup(cancel)
	return shared.KubectlCommand(ctx, append([]string{"-n", ns}, args...)...)
}

func TestLogs(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	const lines = 300
	box(t, ns, "talker", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); [ $((i %% 20)) = 0 ] && sleep 0.1; done; echo complaint >&2; printf unfinished; sleep 3600", lines))
	cmd := command(t, ns, "logs", "-f", "talker")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	for i := range lines {
		if !in.Scan() || in.Text() != fmt.Sprintf("line %d", i) {
			t.Fatalf("line %d is %q (%v)", i, in.Text(), in.Err())
		}
	}
	if !in.Scan() || in.Text() != "complaint" {
		t.Errorf("after the lines comes %q, not the standard error", in.Text())
	}
	kubectl(t, ns, "delete", "pod", "talker", "--now")
	if in.Scan() && in.Text() != "unfinished" {
		t.Errorf("at last comes %q", in.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("logs -f of a pod that is deleted: %v", err)
	}
}

func TestLogOptions(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "talker", "for i in 1 2 3 4 5; do echo line $i; done; sleep 3600")
	eventually(t, 20*time.Second, func(context.Context) error {
		if got := kubectl(t, ns, "logs", "--tail=2", "talker"); got != "line 4\nline 5\n" {
			return fmt.Errorf("logs --tail=2: %q", got)
		}
		return nil
	})
	if got := kubectl(t, ns, "logs", "--limit-bytes=6", "talker"); got != "line 1" {
		t.Errorf("logs --limit-bytes=6: %q", got)
	}
	stamped := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line 1\n`)
	if got := kubectl(t, ns, "logs", "--timestamps", "talker"); !stamped.MatchString(got) {
		t.Errorf("logs --timestamps: %q", got)
	}
}

func TestPreviousLogs(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "faller", "echo life; [ -e /dev/shm/fell ] && sleep 3600; touch /dev/shm/fell; echo fell; sleep 2; exit 7")
	eventually(t, time.Minute, func(ctx context.Context) error {
		p, err := shared.Client.CoreV1().Pods(ns).Get(ctx, "faller", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := p.Status.ContainerStatuses[0]
		if s.RestartCount == 0 || s.LastTerminationState.Terminated == nil {
			return errors.New("not restarted yet")
		}
		if got := s.LastTerminationState.Terminated.ExitCode; got != 7 {
			return fmt.Errorf("exit code %d", got)
		}
		return nil
	})
	if got := kubectl(t, ns, "logs", "--previous", "faller"); got != "life\nfell\n" {
		t.Errorf("logs --previous: %q", got)
	}
}

func TestExec(t *testing.T) { //nolint:tparallel // its parts share a pod
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "box", "")
	t.Run("exit code and streams", func(t *testing.T) {
		cmd := command(t, ns, "exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		var exit *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
			t.Errorf("ends with %v, want exit code 3", err)
		}
		if out.String() != "out\n" || !strings.HasPrefix(errOut.String(), "err\n") {
			t.Errorf("printed %q and %q", out.String(), errOut.String())
		}
	})
	t.Run("standard input", func(t *testing.T) {
		data := make([]byte, 3<<20)
		_, _ = rand.Read(data)
		cmd := command(t, ns, "exec", "-i", "box", "--", "cat")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil || !bytes.Equal(out, data) {
			t.Errorf("%d bytes of %d came back: %v", len(out), len(data), err)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		out, err := shared.Kubectl(t.Context(), "-n", ns, "exec", "box", "--", "no-such-program")
		if err == nil {
			t.Fatalf("succeeds: %s", out)
		}
		has(t, "error", err.Error(), "no-such-program", "not found")
	})
	t.Run("terminal", func(t *testing.T) {
		tty := openTerminal(t, 31, 97)
		cmd := command(t, ns, "exec", "-it", "box", "--", "sh")
		tty.attach(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		tty.say("tty; echo mark$((40+2))\n")
		has(t, "terminal", tty.until("mark42"), "/dev/pts/")
		// Sizes travel beside the streams, so they take their own time.
		const untilSize = "until stty size | grep '^%s$'; do sleep 0.1; done\n"
		tty.say(fmt.Sprintf(untilSize, "31 97"))
		tty.until("\n31 97\r")
		tty.resize(50, 120)
		tty.say(fmt.Sprintf(untilSize, "50 120"))
		tty.until("\n50 120\r")
		tty.say("echo mark$((39+2)); sleep 100\n")
		tty.until("mark41")
		tty.interrupt("/ # ")
		tty.say("exit 5\n")
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Errorf("ends with %v, want exit code 5", err)
		}
	})
}

func TestAttach(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "echo", "while read l; do echo \"heard $l\"; done; sleep 3600")
	cmd := command(t, ns, "attach", "-i", "echo")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := bufio.NewReader(out)
	for _, word := range []string{"one", "two"} {
		if _, err := io.WriteString(in, word+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := read.ReadString('\n'); line != "heard "+word+"\n" {
			t.Fatalf("heard %q: %v", line, err)
		}
	}
	if err := errors.Join(in.Close(), cmd.Process.Kill()); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
	has(t, "log", kubectl(t, ns, "logs", "echo"), "heard one\nheard two\n")
}

func TestCopy(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "box", "")
	dir := t.TempDir()
	data := make([]byte, 5<<20)
	_, _ = rand.Read(data)
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, data, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, ns, "cp", from, "box:/tmp/file")
	kubectl(t, ns, "cp", "box:/tmp/file", to)
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(data), err)
	}
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	web(t, ns)
	cmd := command(t, ns, "port-forward", "service/web", ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	m := regexp.MustCompile(`from (\S+) ->`).FindStringSubmatch(line)
	if err != nil || m == nil {
		t.Fatalf("says %q: %v", line, err)
	}
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+m[1]+"/stream?bytes=800000", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil || n != 800000 {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// TestDelete sees that a pod may take its leave, but not for longer than its grace.
func TestDelete(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	box(t, ns, "polite", "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.1; done")
	box(t, ns, "stubborn", "trap '' TERM; while :; do sleep 0.1; done")
	logs := command(t, ns, "logs", "-f", "polite")
	var said bytes.Buffer
	logs.Stdout = &said
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func(context.Context) error {
		if out := kubectl(t, ns, "logs", "polite"); out != "hello\n" {
			return fmt.Errorf("says %q", out)
		}
		return nil
	})
	begun := time.Now()
	kubectl(t, ns, "delete", "pod", "polite", "--grace-period=30")
	if d := time.Since(begun); d > 25*time.Second {
		t.Errorf("a pod that ends by itself took %s", d)
	}
	_ = logs.Wait()
	has(t, "last words", said.String(), "bye")
	begun = time.Now()
	kubectl(t, ns, "delete", "pod", "stubborn", "--grace-period=2")
	if d := time.Since(begun); d < 2*time.Second || d > slower*20*time.Second {
		t.Errorf("a pod that does not end by itself, with 2 s of grace, took %s", d)
	}
}

func TestEphemeralContainer(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	web(t, ns)
	kubectl(t, ns, "debug", "web", "--image=busybox", "--target=main", "--container=debugger", "--attach=false", "--quiet", "--",
		"sh", "-c", "wget -qO- http://127.0.0.1:8080/; ls /proc/1/root/web")
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		out, err := shared.Kubectl(ctx, "-n", ns, "logs", "web", "-c", "debugger")
		if err == nil && (!strings.HasPrefix(out, "hello from web") || !strings.HasSuffix(out, "/proc/1/root/web\n")) {
			err = fmt.Errorf("the debugger says %q", out)
		}
		return err
	})
}

func TestStartError(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers: [{name: main, image: busybox, command: [no-such-program]}]
`)
	phase(t, ns, "once", corev1.PodFailed)
	p, err := shared.Client.CoreV1().Pods(ns).Get(t.Context(), "once", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	end := p.Status.ContainerStatuses[0].State.Terminated
	if end == nil || end.ExitCode != 128 || end.Reason != "StartError" || !strings.Contains(end.Message, "no-such-program") {
		t.Errorf("ended as %+v", end)
	}
}

func TestTermination(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  initContainers:
    - {name: first, image: busybox, command: [sh, -c, "echo from init > /work/file"], volumeMounts: [{name: work, mountPath: /work}]}
  containers:
    - {name: main, image: busybox, command: [sh, -c, "cat /work/file > /dev/termination-log; exit 9"], volumeMounts: [{name: work, mountPath: /work}]}
  volumes: [{name: work, emptyDir: {}}]
`)
	phase(t, ns, "once", corev1.PodFailed)
	p, err := shared.Client.CoreV1().Pods(ns).Get(t.Context(), "once", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	end := p.Status.ContainerStatuses[0].State.Terminated
	if end == nil || end.ExitCode != 9 || end.Message != "from init\n" || end.Reason != "Error" {
		t.Errorf("ended as %+v", end)
	}
}
