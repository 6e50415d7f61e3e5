// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2" //nolint:depguard // the one bridge from client-go's klog

	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
)

// newLogger returns the daemon's logger and the level that a reload may change.
func newLogger(w io.Writer, cfg config.Log) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if err := setLevel(level, cfg.Level); err != nil {
		return nil, nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, opts)
	if cfg.Format == "json" {
		h = slog.NewJSONHandler(w, opts)
	}
	// client-go logs through klog; its chatter is debug to us.
	klog.SetLogger(logr.FromSlogHandler(h))
	return slog.New(h), level, nil
}

func setLevel(level *slog.LevelVar, name string) error {
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return fmt.Errorf("log level: %w", err)
	}
	return nil
}
