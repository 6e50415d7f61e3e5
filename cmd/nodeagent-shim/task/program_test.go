// SPDX-License-Identifier: Apache-2.0

package task

import (
	"bufio"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestAwaitProgram follows a process that is its parent's copy until it is told to become a program.
func TestAwaitProgram(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", "(read line <&3; exec sleep 1000) & echo $!; wait")
	cmd.ExtraFiles = []*os.File{r}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		p, err := os.FindProcess(pid)
		if err == nil {
			err = p.Kill()
		}
		if err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}()
	c := &container{init: &process{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.awaitProgram(t.Context(), pid)
	}()
	select {
	case <-done:
		t.Fatal("a process is taken for the program that it is not yet")
	case <-time.After(10 * programPause):
	}
	if _, err := w.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	<-done
	if forked(pid) || forked(os.Getpid()) || forked(1<<22+1) {
		t.Error("a program is taken for a copy")
	}
}
