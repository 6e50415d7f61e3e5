// SPDX-License-Identifier: Apache-2.0

// Package chain gives pods of our CRI the network that the node's CNI
// configuration says: our own, called in this process; our own with plugins of
// others chained behind it; or a foreign network altogether. It has the verbs
// of cni.Network, so that the CRI does not know the difference. What a pod was
// attached with is recorded, and so is what it is detached with, whatever the
// configuration says by then.
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/conflist"
	"github.com/nodeagent/nodeagent/cni/link"
	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// Config says where the node's CNI configuration is.
type Config struct {
	// Enabled reads ConfDir for every pod; otherwise all pods get our network.
	Enabled bool `yaml:"enabled"`
	// ConfDir has the network configurations; the first by name is used.
	ConfDir string `yaml:"confDir"`
	// BinDirs have the plugins' programs.
	BinDirs []string `yaml:"binDirs"`
	// CacheDir is where libcni keeps the results of attachments.
	CacheDir string `yaml:"cacheDir"`
}

// Default returns the places that CNI runtimes have in common.
func Default() Config {
	return Config{ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, CacheDir: "/run/nodeagent/cni-cache"}
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.ConfDir) {
		errs = append(errs, fmt.Errorf("confDir: %q is not an absolute path", c.ConfDir))
	}
	if len(c.BinDirs) == 0 {
		errs = append(errs, errors.New("binDirs: must not be empty"))
	}
	for i, d := range c.BinDirs {
		if !filepath.IsAbs(d) {
			errs = append(errs, fmt.Errorf("binDirs[%d]: %q is not an absolute path", i, d))
		}
	}
	if !filepath.IsAbs(c.CacheDir) {
		errs = append(errs, fmt.Errorf("cacheDir: %q is not an absolute path", c.CacheDir))
	}
	return errors.Join(errs...)
}

// Own is our own network.
type Own interface {
	Attach(ctx context.Context, req cni.Request) (*cni.Result, error)
	Detach(ctx context.Context, k cni.Key) error
	Check(ctx context.Context, req cni.Request) error
	Collect(ctx context.Context, network string, valid []cni.Key) error
	Status(ctx context.Context) error
}

var _ Own = (*cni.Network)(nil)

// Deps are what a Chain works with.
type Deps struct {
	// Own may be nil: then foreign networks are used even if Config.Enabled is
	// false.
	Own Own
	// Call does calls of our plugin in this process (api.CNICall).
	Call func(context.Context, shim.Call) ([]byte, error)
	// DB is the daemon's database; the chain owns the bucket "cni-chain".
	DB  *bbolt.DB
	Log *slog.Logger
}

// Chain attaches pods by the node's CNI configuration.
type Chain struct {
	cfg  Config
	deps Deps
	cni  *libcni.CNIConfig
	log  *slog.Logger
}

// New returns a chain that does nothing before Start.
func New(cfg Config, deps Deps) (*Chain, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cni chain configuration: %w", err)
	}
	if deps.Own == nil {
		cfg.Enabled = true // there is no other network
	}
	exec := &inProcess{call: deps.Call, DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: io.Discard}}}
	return &Chain{
		cfg: cfg, deps: deps, log: deps.Log,
		cni: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, exec),
	}, nil
}

// Start makes the bucket.
func (c *Chain) Start(context.Context) error { return c.load() }

// current returns the network configuration in force: the first by name that
// can be read. ErrNotReady if there is none.
func (c *Chain) current(ctx context.Context) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(c.cfg.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", cni.ErrNotReady, c.cfg.ConfDir, err)
	}
	for _, f := range files {
		list, err := loadList(f)
		if err != nil {
			c.log.WarnContext(ctx, "network configuration left out", "path", f, "err", err)
			continue
		}
		return list, nil
	}
	return nil, fmt.Errorf("%w: no network configuration in %s", cni.ErrNotReady, c.cfg.ConfDir)
}

// loadList reads a configuration list, or one plugin's configuration as a list
// of one.
func loadList(path string) (*libcni.NetworkConfigList, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(path) != ".conflist" {
		if body, err = listOfOne(body); err != nil {
			return nil, err
		}
	}
	list, err := libcni.NetworkConfFromBytes(body)
	if err == nil && len(list.Plugins) == 0 {
		err = errors.New("it has no plugins")
	}
	return list, err
}

func listOfOne(body []byte) ([]byte, error) {
	var conf struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(body, &conf); err != nil {
		return nil, err
	}
	if conf.Type == "" {
		return nil, errors.New("it has no type, perhaps it is a .conflist")
	}
	return json.Marshal(map[string]any{
		"cniVersion": conf.CNIVersion, "name": conf.Name, "plugins": []json.RawMessage{body},
	})
}

// isOwn says if a configuration is our network and nothing else.
func (c *Chain) isOwn(list *libcni.NetworkConfigList) bool {
	return c.deps.Own != nil && len(list.Plugins) == 1 && list.Plugins[0].Network.Type == conflist.Plugin
}

// Attach gives a pod its interface. A repeat detaches first, because plugins
// are not asked twice (CNI specification, section ADD).
func (c *Chain) Attach(ctx context.Context, req cni.Request) (*cni.Result, error) {
	if !c.cfg.Enabled {
		return c.deps.Own.Attach(ctx, req)
	}
	list, err := c.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("attach %s: %w", req.Key, err)
	}
	if c.isOwn(list) {
		return c.deps.Own.Attach(ctx, req)
	}
	if err := c.Detach(ctx, req.Key); err != nil {
		return nil, fmt.Errorf("attach %s: replace what was there: %w", req.Key, err)
	}
	res, err := c.attachList(ctx, req, list)
	if err != nil {
		return nil, fmt.Errorf("attach %s to network %s: %w", req.Key, list.Name, err)
	}
	return res, nil
}

func (c *Chain) attachList(ctx context.Context, req cni.Request, list *libcni.NetworkConfigList) (_ *cni.Result, retErr error) {
	if err := loopback(req.NetNS); err != nil {
		return nil, err
	}
	if err := c.put(record{Request: req, Config: list.Bytes}); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			// A runtime must delete what it failed to add; what cannot be deleted
			// now stays recorded for the next Detach.
			retErr = errors.Join(retErr, c.Detach(context.WithoutCancel(ctx), req.Key))
		}
	}()
	raw, err := c.cni.AddNetworkList(ctx, list, runtimeConf(req))
	if err != nil {
		return nil, err
	}
	res, err := resultOf(req, raw)
	if err != nil {
		return nil, err
	}
	c.log.InfoContext(ctx, "pod attached", "attachment", req.Key, "network", list.Name, "addrs", res.Addrs)
	return res, nil
}

func loopback(path string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	return link.LoopbackUp(ns)
}

// Detach removes an attachment with the configuration it was made with.
func (c *Chain) Detach(ctx context.Context, k cni.Key) error {
	rec, err := c.get(k)
	if errors.Is(err, cni.ErrUnknown) {
		if c.deps.Own == nil {
			return nil
		}
		return c.deps.Own.Detach(ctx, k)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return fmt.Errorf("detach %s: read its configuration: %w", k, err)
	}
	rt := runtimeConf(rec.Request)
	if ns, err := netns.Open(rt.NetNS); err != nil {
		rt.NetNS = "" // gone: plugins free what they hold elsewhere
	} else if err := ns.Close(); err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	if err := c.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("detach %s from network %s: %w", k, list.Name, err)
	}
	c.log.InfoContext(ctx, "pod detached", "attachment", k, "network", list.Name)
	return c.delete(k)
}

// Check asks every plugin that made the attachment.
func (c *Chain) Check(ctx context.Context, req cni.Request) error {
	rec, err := c.get(req.Key)
	if errors.Is(err, cni.ErrUnknown) && c.deps.Own != nil {
		return c.deps.Own.Check(ctx, req)
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", req.Key, err)
	}
	list, err := libcni.NetworkConfFromBytes(rec.Config)
	if err != nil {
		return fmt.Errorf("check %s: read its configuration: %w", req.Key, err)
	}
	if err := c.cni.CheckNetworkList(ctx, list, runtimeConf(rec.Request)); err != nil {
		return fmt.Errorf("check %s: %w: %w", req.Key, cni.ErrBroken, err)
	}
	return nil
}

// Collect removes every attachment of our CRI whose key is not in valid, then
// asks the plugins in force to do the same. Plugins that know no GC are no
// error. It goes on past errors.
func (c *Chain) Collect(ctx context.Context, valid []cni.Key) error {
	keep := map[cni.Key]bool{}
	for _, k := range valid {
		keep[k] = true
	}
	var errs []error
	if c.deps.Own != nil {
		errs = append(errs, c.deps.Own.Collect(ctx, "", valid))
	}
	recs, err := c.list()
	errs = append(errs, err)
	for _, r := range recs {
		if !keep[r.Request.Key] {
			errs = append(errs, c.Detach(ctx, r.Request.Key))
		}
	}
	if c.cfg.Enabled {
		c.collectForeign(ctx, valid)
	}
	return errors.Join(errs...)
}

// Status says if Attach can be served.
func (c *Chain) Status(ctx context.Context) error {
	if !c.cfg.Enabled {
		return c.deps.Own.Status(ctx)
	}
	list, err := c.current(ctx)
	if err != nil {
		return err
	}
	if c.isOwn(list) {
		return c.deps.Own.Status(ctx)
	}
	if err := c.cni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("%w: network %s: %w", cni.ErrNotReady, list.Name, err)
	}
	return nil
}
