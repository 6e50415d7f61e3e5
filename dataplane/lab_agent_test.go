// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// agent is a data path in a process of its own.
type agent struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	mu  sync.Mutex
}

type labCall struct {
	Verb string
	Args json.RawMessage
}

type labReply struct {
	Err string
	Out json.RawMessage
}

func (h *host) startAgent(tb testing.TB) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net="+h.path, exe)
	cmd.Env = append(os.Environ(), labEnv+"=agent", labObject+"="+h.object, labDie+"="+h.dieAt)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<24)
	h.agent = &agent{cmd: cmd, in: in, out: sc}
	h.agent.must(tb, "SetNode", h.node)
	h.agent.must(tb, "ExpectPolicies", h.policies)
	if h.dieAt == "" {
		h.agent.must(tb, "Start", h.cfg)
		return
	}
	if err := h.agent.call("Start", h.cfg); err == nil {
		tb.Fatalf("agent did not die at %q", h.dieAt)
	}
	h.agent.cmd.Wait() //nolint:errcheck // it killed itself: there is an error
}

// Variables of an agent's environment: the programs that it loads instead of
// its own, the step of an upgrade at which it kills itself, and the pause between
// its sweeps.
const (
	labObject = "NODEAGENT_LAB_OBJECT"
	labDie    = "NODEAGENT_LAB_DIE"
	labSweep  = "NODEAGENT_LAB_SWEEP"
)

// labDeps are what the environment asks for.
func labDeps(log *slog.Logger, policies bool) Deps {
	deps := Deps{Log: log, Policies: policies}
	if every := os.Getenv(labSweep); every != "" {
		deps.SweepEvery, _ = time.ParseDuration(every)
	}
	if path := os.Getenv(labObject); path != "" {
		deps.Object = func() (*ebpf.CollectionSpec, error) { return ebpf.LoadCollectionSpec(path) }
	}
	if at := os.Getenv(labDie); at != "" {
		deps.OnUpgrade = func(step string) {
			if step == at {
				unix.Kill(os.Getpid(), unix.SIGKILL) //nolint:errcheck // nothing is left to say it
			}
		}
	}
	return deps
}

// call calls a verb of the data path.
func (a *agent) call(verb string, args any) error { return a.get(verb, args, nil) }

// get calls a verb that answers something.
func (a *agent) get(verb string, args, out any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(labCall{verb, raw})
	if err != nil {
		return err
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		return err
	}
	if !a.out.Scan() {
		return errors.New("agent is gone")
	}
	var r labReply
	if err := json.Unmarshal(a.out.Bytes(), &r); err != nil {
		return err
	}
	if r.Err != "" {
		return errors.New(r.Err)
	}
	if out != nil {
		return json.Unmarshal(r.Out, out)
	}
	return nil
}

func (a *agent) must(tb testing.TB, verb string, args any) {
	tb.Helper()
	if err := a.call(verb, args); err != nil {
		tb.Fatalf("%s: %v", verb, err)
	}
}

// kill ends the agent as a crash would.
func (a *agent) kill(tb testing.TB) {
	tb.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		tb.Fatal(err)
	}
	a.cmd.Wait() //nolint:errcheck // it was killed: there is an error
}

func (a *agent) stop(tb testing.TB) {
	tb.Helper()
	if a.cmd.ProcessState != nil {
		return
	}
	if err := errors.Join(a.in.Close(), a.cmd.Wait()); err != nil {
		tb.Errorf("agent: %v", err)
	}
}

// agentMain is the process of an agent: one call a line, one reply a line.
func agentMain() int {
	ctx := context.Background()
	var d *Dataplane
	var node Node
	var policies bool
	var looks labLooks
	level := slog.LevelError
	if os.Getenv("NODEAGENT_LAB_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	sc := bufio.NewScanner(os.Stdin)
	sc.Buffer(nil, 1<<24)
	for sc.Scan() {
		var c labCall
		var r labReply
		err := json.Unmarshal(sc.Bytes(), &c)
		if err == nil {
			switch c.Verb {
			case "Start":
				deps := labDeps(log, policies)
				deps.OnGrow = looks.grew
				d, err = agentStart(ctx, c.Args, node, deps)
			case "ExpectPolicies":
				err = json.Unmarshal(c.Args, &policies)
			case "SetNode":
				node = Node{}
				if err = json.Unmarshal(c.Args, &node); err == nil && d != nil {
					err = d.SetNode(ctx, node)
				}
			case "Trace", "Grown", "Frontends", "ServiceStats", "Usage", "Watch", "Watched", "Unwatch", "Counters", "Accelerations":
				r.Out, err = agentAsk(d, &looks, c)
			default:
				err = agentCall(ctx, d, c, policies)
			}
		}
		if err != nil {
			r.Err = err.Error()
		}
		line, _ := json.Marshal(r)
		fmt.Println(string(line))
	}
	if d != nil {
		if err := errors.Join(d.Stop(ctx), goleak.Find()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return 0
}

func agentStart(ctx context.Context, raw json.RawMessage, node Node, deps Deps) (*Dataplane, error) {
	var cfg Config
	if err := json.Unmarshal(raw, &cfg); err != nil {
		return nil, err
	}
	d, err := New(cfg, deps)
	if err != nil {
		return nil, err
	}
	return d, errors.Join(d.SetNode(ctx, node), d.Start(ctx))
}

func with[T any](raw json.RawMessage, fn func(T) error) error {
	var v T
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	return fn(v)
}

// agentAsk calls the verbs that answer something.
func agentAsk(d *Dataplane, looks *labLooks, c labCall) (json.RawMessage, error) {
	var out any
	var err error
	switch c.Verb {
	case "Trace":
		err = with(c.Args, func(req TraceRequest) error {
			traces, err := d.Trace(req)
			out = traces
			return err
		})
	case "Watch":
		looks.start(d)
	case "Watched":
		out = looks.soFar()
	case "Unwatch":
		err = looks.end()
	case "Frontends":
		out, err = d.Frontends()
	case "Grown":
		out = looks.grown
	case "Counters":
		out, err = d.Counters()
	case "Accelerations":
		out = d.Accelerations()
	case "ServiceStats":
		out, err = d.ServiceStats()
	default:
		out, err = d.Usage()
	}
	if err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// agentCall calls the others. Where policies are expected, it does not wait for
// them for long; anything else may take its time on a busy machine.
func agentCall(ctx context.Context, d *Dataplane, c labCall, policies bool) error {
	switch c.Verb {
	case "UpdateEndpoint":
		patience := time.Minute
		if policies {
			patience = 2 * time.Second
		}
		short, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return with(c.Args, func(ep Endpoint) error { return d.UpdateEndpoint(short, ep) })
	case "PrepareLink":
		return with(c.Args, func(idx int) error { return d.PrepareLink(ctx, idx) })
	case "DeleteEndpoint":
		return with(c.Args, func(id string) error { return d.DeleteEndpoint(ctx, id) })
	case "PruneEndpoints":
		return with(c.Args, func(ids []string) error { return d.PruneEndpoints(ctx, ids) })
	case "ReplacePolicyObjects":
		return with(c.Args, func(o policy.Objects) error { return d.ReplacePolicyObjects(ctx, o) })
	case "UpdatePolicyObjects":
		return with(c.Args, func(o policy.Objects) error { return d.UpdatePolicyObjects(ctx, o, policy.Names{}) })
	case "UpdatePeers":
		return with(c.Args, func(p []Peer) error { return d.UpdatePeers(ctx, p) })
	case "UpdateServices":
		return with(c.Args, func(o []service.Object) error { return d.UpdateServices(ctx, o) })
	case "DeleteServices":
		return with(c.Args, func(n []types.NamespacedName) error { return d.DeleteServices(ctx, n) })
	case "PruneServices":
		return with(c.Args, func(n []types.NamespacedName) error { return d.PruneServices(ctx, n) })
	default:
		return fmt.Errorf("unknown verb %q", c.Verb)
	}
}
