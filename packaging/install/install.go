// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/nodeagent/nodeagent/packaging"
)

// Installer installs and removes.
type Installer struct {
	opts Options
	deps Deps
	log  *slog.Logger
	tree tree
}

// New checks the options; it touches nothing.
func New(opts Options, deps Deps) (*Installer, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	if deps.Env == nil {
		deps.Env = os.Getenv
	}
	if deps.Host == nil {
		deps.Host = newHost(opts.Root)
	}
	return &Installer{opts: opts, deps: deps, log: deps.Log, tree: tree{root: opts.Root}}, nil
}

// Change is what became of one file.
type Change struct {
	Path string `json:"path"`
	// Action is created, updated, unchanged, removed or kept.
	Action string `json:"action"`
	// Why says why a file was kept.
	Why string `json:"why,omitempty"`
}

// Report is what an installation or removal did.
type Report struct {
	Changes []Change `json:"changes"`
	// Restarted reports that the daemon was started anew.
	Restarted bool `json:"restarted"`
	// Notes are for the person who called.
	Notes []string `json:"notes,omitempty"`
}

func (r *Report) changed(paths ...string) bool {
	return slices.ContainsFunc(r.Changes, func(c Change) bool {
		return (c.Action == "created" || c.Action == "updated") && slices.Contains(paths, c.Path)
	})
}

// file is one file to install.
type file struct {
	path string
	mode os.FileMode
	data []byte
	// once: an existing file is a person's, and stays.
	once bool
}

// Apply installs, or upgrades, and starts the daemon where its files changed.
func (i *Installer) Apply(ctx context.Context) (*Report, error) {
	files, err := i.files()
	if err != nil {
		return nil, err
	}
	rec, err := i.tree.readRecord()
	if err != nil {
		return nil, err
	}
	report := &Report{}
	if err := i.removeStale(ctx, &rec, files, report); err != nil {
		return report, err
	}
	rec.Version, rec.Mode = i.opts.Version, i.opts.Mode
	// The record comes first: what is written next is taken off again, come what may.
	for _, f := range files {
		rec.Files[f.path] = hash(f.data)
	}
	if err := i.tree.writeRecord(rec); err != nil {
		return nil, err
	}
	for _, f := range files {
		c, err := i.tree.put(f)
		if err != nil {
			return report, err
		}
		if c.Action == "kept" {
			delete(rec.Files, f.path)
		}
		report.Changes = append(report.Changes, c)
	}
	if err := i.tree.writeRecord(rec); err != nil {
		return report, err
	}
	return report, i.start(ctx, report)
}

// removeStale takes off what an earlier version or mode installed and this one
// does not.
func (i *Installer) removeStale(ctx context.Context, rec *record, files []file, report *Report) error {
	if rec.Mode == ModeHost && i.opts.Mode != ModeHost && i.deps.Host.HasSystemd() && i.tree.exists(packaging.UnitPath) {
		if err := i.deps.Host.Systemctl(ctx, "disable", "--now", "nodeagent.service"); err != nil {
			return err
		}
	}
	for path, sum := range sorted(rec.Files) {
		if slices.ContainsFunc(files, func(f file) bool { return f.path == path }) {
			continue
		}
		c, err := i.tree.remove(path, sum, false)
		if err != nil {
			return err
		}
		delete(rec.Files, path)
		report.Changes = append(report.Changes, c)
	}
	return nil
}

// files are everything that belongs on the node in this mode.
func (i *Installer) files() ([]file, error) {
	var out []file
	programs := map[string]string{
		packaging.Daemon: i.opts.binDir(), packaging.Plugin: i.opts.cniBinDir(), packaging.Shim: i.opts.binDir(),
	}
	if i.opts.Mode == ModePod {
		delete(programs, packaging.Shim) // another runtime's pods
	}
	for _, name := range []string{packaging.Daemon, packaging.Shim, packaging.Plugin} {
		dir, ok := programs[name]
		if !ok {
			continue
		}
		data, err := os.ReadFile(filepath.Join(i.opts.Programs, name))
		if err != nil {
			return nil, fmt.Errorf("read program: %w", err)
		}
		out = append(out, file{path: filepath.Join(dir, name), mode: 0o755, data: data})
	}
	for _, more := range []func() ([]file, error){i.identityFiles, i.configFiles, i.unitFiles, i.kubeletFiles} {
		files, err := more()
		if err != nil {
			return nil, err
		}
		out = append(out, files...)
	}
	return out, nil
}

func (i *Installer) unitFiles() ([]file, error) {
	if i.opts.Mode != ModeHost {
		return nil, nil
	}
	unit, err := packaging.Unit(i.opts.binDir())
	return []file{{path: packaging.UnitPath, mode: 0o644, data: unit}}, err
}

func (i *Installer) kubeletFiles() ([]file, error) {
	if !i.opts.Kubelet {
		return nil, nil
	}
	dropIns, err := packaging.KubeletDropIns()
	if err != nil {
		return nil, err
	}
	var out []file
	for _, path := range []string{packaging.KubeletConfigDropIn, packaging.KubeletUnitDropIn} {
		out = append(out, file{path: path, mode: 0o644, data: dropIns[path]})
	}
	return out, nil
}

// start makes systemd run the daemon, anew if its files changed.
func (i *Installer) start(ctx context.Context, report *Report) error {
	if i.opts.Mode != ModeHost {
		return nil
	}
	if !i.deps.Host.HasSystemd() {
		report.Notes = append(report.Notes, "there is no systemd here: start "+filepath.Join(i.opts.binDir(), packaging.Daemon)+" run by other means")
		return nil
	}
	if report.changed(packaging.UnitPath, packaging.KubeletUnitDropIn) {
		if err := i.deps.Host.Systemctl(ctx, "daemon-reload"); err != nil {
			return err
		}
	}
	if report.changed(packaging.KubeletUnitDropIn, packaging.KubeletConfigDropIn) {
		report.Notes = append(report.Notes, "the kubelet uses nodeagent from its next start on: drain the node, then systemctl restart kubelet")
	}
	if err := i.deps.Host.Systemctl(ctx, "enable", "nodeagent.service"); err != nil {
		return err
	}
	if !report.changed(packaging.UnitPath, packaging.ConfigPath, packaging.KubeconfigPath,
		filepath.Join(i.opts.binDir(), packaging.Daemon)) {
		return i.deps.Host.Systemctl(ctx, "start", "nodeagent.service")
	}
	report.Restarted = true
	return i.deps.Host.Systemctl(ctx, "restart", "nodeagent.service")
}

// Remove stops the daemon and removes what was installed. A file that a person
// has changed is kept, unless purge.
func (i *Installer) Remove(ctx context.Context, purge bool) (*Report, error) {
	rec, err := i.tree.readRecord()
	if err != nil {
		return nil, err
	}
	report := &Report{}
	if rec.Mode == ModeHost && i.deps.Host.HasSystemd() && i.tree.exists(packaging.UnitPath) {
		if err := i.deps.Host.Systemctl(ctx, "disable", "--now", "nodeagent.service"); err != nil {
			return nil, err
		}
	}
	var errs []error
	for path, sum := range sorted(rec.Files) {
		c, err := i.tree.remove(path, sum, purge)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if c.Action != "kept" {
			delete(rec.Files, path)
		}
		report.Changes = append(report.Changes, c)
	}
	if len(errs) == 0 {
		errs = append(errs, i.tree.removeRecord())
	} else {
		errs = append(errs, i.tree.writeRecord(rec))
	}
	if rec.Mode == ModeHost && i.deps.Host.HasSystemd() {
		errs = append(errs, i.deps.Host.Systemctl(ctx, "daemon-reload"))
	}
	report.Notes = append(report.Notes, "state stays: /run/nodeagent, /var/lib/nodeagent and BPF pins; running pods keep their network")
	return report, errors.Join(errs...)
}
