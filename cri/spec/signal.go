// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const defaultStopSignal = "SIGTERM"

// StopSignal resolves the signal that stops a container: the pod's, else the image's, else SIGTERM. It returns a name with SIG
// (SIGTERM, SIGRTMIN+3), or the bare number when the image gives one that has no name.
func StopSignal(want runtimeapi.Signal, image string) (string, error) {
	if want != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, ok := enumName(runtimeapi.Signal_name, int32(want))
		if !ok {
			return "", fmt.Errorf("stop_signal: unknown value %d: %w", int32(want), errdefs.ErrInvalidArgument)
		}
		name = strings.TrimPrefix(name, "SIGNAL_")
		name = strings.NewReplacer("PLUS", "+", "MINUS", "-").Replace(name)
		if _, err := signal.ParseSignal(name); err != nil {
			return "", fmt.Errorf("stop_signal: %s: no such signal here: %w", name, errdefs.ErrInvalidArgument)
		}
		return name, nil
	}
	if image == "" {
		return defaultStopSignal, nil
	}
	if n, err := strconv.Atoi(image); err == nil {
		return numbered(n)
	}
	if _, err := signal.ParseSignal(image); err != nil {
		return "", fmt.Errorf("stop signal of the image: %q is not a signal: %w", image, errdefs.ErrInvalidArgument)
	}
	return canonical(image), nil
}

// numbered names a signal given by its number; real-time signals keep the number.
func numbered(n int) (string, error) {
	if n < 1 || n > 64 {
		return "", fmt.Errorf("stop signal of the image: %d is not a signal: %w", n, errdefs.ErrInvalidArgument)
	}
	if name := unix.SignalName(syscall.Signal(n)); name != "" {
		return name, nil
	}
	return strconv.Itoa(n), nil
}

// canonical writes SIG in front and folds the names that share a number with another.
func canonical(name string) string {
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	switch name {
	case "SIGCLD":
		return "SIGCHLD"
	case "SIGIOT":
		return "SIGABRT"
	case "SIGPOLL":
		return "SIGIO"
	}
	return name
}

// Signal is the CRI's value for a stop signal that StopSignal returned, as ContainerStatus reports it.
func Signal(name string) runtimeapi.Signal {
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}

func (b *builder) stopSignal() {
	name, err := StopSignal(b.in.Config.GetStopSignal(), b.in.Image.Config.StopSignal)
	if err != nil {
		b.faults = append(b.faults, err)
	}
	b.out.StopSignal = name
}
