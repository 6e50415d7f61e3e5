// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/csi/backend/file"
)

// Names of the parameters of a class. Those of Limits are mutable.
const (
	ParamClass        = "class"
	ParamPool         = "pool"
	ParamProvisioning = "provisioning" // thick (default) or thin
	ParamFSType       = "fsType"       // when the claim's capability names none
	ParamUID          = "uid"          // owner of a fresh file system's root
	ParamGID          = "gid"
	ParamMode         = "mode"  // octal mode of a fresh file system's root
	ParamImage        = "image" // backend image: path of the image below the pool
	ParamFreeze       = "freeze"

	ParamReadIOPS       = "readIOPS"
	ParamWriteIOPS      = "writeIOPS"
	ParamReadBandwidth  = "readBandwidth" // bytes per second, or with a suffix
	ParamWriteBandwidth = "writeBandwidth"
)

// labelPrefix marks what the provisioner adds about the claim; it is kept with
// the volume for people to read and never compared.
const labelPrefix = "csi.storage.k8s.io/"

// Limits bound a volume's I/O; 0 is no limit.
type Limits struct {
	ReadIOPS       int64 `json:"readIOPS,omitempty"`
	WriteIOPS      int64 `json:"writeIOPS,omitempty"`
	ReadBandwidth  int64 `json:"readBandwidth,omitempty"`
	WriteBandwidth int64 `json:"writeBandwidth,omitempty"`
}

// Params is a class's parameters, parsed.
type Params struct {
	Pool    string            `json:"pool"`
	Thin    bool              `json:"thin,omitempty"`
	FSType  string            `json:"fsType,omitempty"`
	UID     int               `json:"uid,omitempty"`
	GID     int               `json:"gid,omitempty"`
	Mode    uint32            `json:"mode,omitempty"` // 0 means 0755
	Image   string            `json:"image,omitempty"`
	Options map[string]string `json:"options,omitempty"` // for the backend
	Limits  Limits            `json:"limits,omitzero"`
}

// parameters parses a request's parameters: a class's first, then the request's
// own, then the mutable ones.
func (c Config) parameters(in, mutable map[string]string) (Params, error) {
	merged, err := c.expandClass(in)
	if err != nil {
		return Params{}, err
	}
	var p Params
	if len(c.Pools) > 0 {
		p.Pool = c.Pools[0].Name
	}
	for _, k := range sortedKeys(merged) {
		if err := p.set(k, merged[k]); err != nil {
			return Params{}, err
		}
	}
	for _, k := range sortedKeys(mutable) {
		if err := p.Limits.set(k, mutable[k]); err != nil {
			return Params{}, err
		}
	}
	return p, nil
}

func (c Config) expandClass(in map[string]string) (map[string]string, error) {
	merged := map[string]string{}
	if name, ok := in[ParamClass]; ok {
		found := false
		for _, k := range c.Classes {
			if k.Name == name {
				maps.Copy(merged, k.Parameters)
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: parameter class: no class %q in the node's configuration", ErrInvalid, name)
		}
	}
	for k, v := range in {
		if k != ParamClass && !strings.HasPrefix(k, labelPrefix) {
			merged[k] = v
		}
	}
	return merged, nil
}

func (p *Params) set(key, val string) error {
	bad := func(why string) error { return fmt.Errorf("%w: parameter %s: %q %s", ErrInvalid, key, val, why) }
	switch key {
	case ParamPool:
		p.Pool = val
	case ParamProvisioning:
		if val != "thick" && val != "thin" {
			return bad("is neither thick nor thin")
		}
		p.Thin = val == "thin"
	case ParamFSType:
		if !knownFS(val) {
			return bad("is none of ext4, ext3, ext2, xfs, btrfs")
		}
		p.FSType = val
	case ParamImage:
		if val == "" || !filepath.IsLocal(val) {
			return bad("is not a path below the pool's images directory")
		}
		p.Image = val
	case file.OptionCowExtent:
		n, err := cowExtent(val)
		if err != nil {
			return bad(err.Error())
		}
		p.Options = map[string]string{key: n}
	case ParamUID, ParamGID, ParamMode:
		if err := p.setOwner(key, val); err != nil {
			return bad(err.Error())
		}
	default:
		return p.Limits.set(key, val)
	}
	return nil
}

func cowExtent(val string) (string, error) {
	n, err := parseSize(val)
	if err != nil || n%file.BlockSize != 0 || n > 1<<30 {
		return "", errors.New("is not a size in multiples of 4096, at most 1Gi")
	}
	return strconv.FormatInt(n, 10), nil
}

func (p *Params) setOwner(key, val string) error {
	base := 10
	if key == ParamMode {
		base = 8
	}
	n, err := strconv.ParseUint(val, base, 31)
	switch {
	case key == ParamMode && (err != nil || n == 0 || n > 0o7777):
		return errors.New("is not an octal mode")
	case err != nil:
		return errors.New("is not an id")
	case key == ParamMode:
		p.Mode = uint32(n)
	case key == ParamUID:
		p.UID = int(n)
	default:
		p.GID = int(n)
	}
	return nil
}

// set parses one mutable parameter.
func (l *Limits) set(key, val string) error {
	var n int64
	var err error
	switch key {
	case ParamReadIOPS, ParamWriteIOPS:
		n, err = strconv.ParseInt(val, 10, 64)
	case ParamReadBandwidth, ParamWriteBandwidth:
		n, err = parseSize(val)
	default:
		return fmt.Errorf("%w: unknown parameter %q", ErrInvalid, key)
	}
	if err != nil || n < 0 {
		return fmt.Errorf("%w: parameter %s: %q is not a number that can limit anything (0 is no limit)", ErrInvalid, key, val)
	}
	switch key {
	case ParamReadIOPS:
		l.ReadIOPS = n
	case ParamWriteIOPS:
		l.WriteIOPS = n
	case ParamReadBandwidth:
		l.ReadBandwidth = n
	case ParamWriteBandwidth:
		l.WriteBandwidth = n
	}
	return nil
}

// equal compares what decides whether two requests by one name mean the same
// volume; limits may have been modified since.
func (p Params) equal(q Params) bool {
	return p.Pool == q.Pool && p.Thin == q.Thin && p.FSType == q.FSType && p.UID == q.UID && p.GID == q.GID &&
		p.rootMode() == q.rootMode() && p.Image == q.Image && maps.Equal(p.Options, q.Options)
}

func (p Params) rootMode() os.FileMode {
	if p.Mode == 0 {
		return 0o755
	}
	m := os.FileMode(p.Mode & 0o777)
	if p.Mode&0o2000 != 0 {
		m |= os.ModeSetgid
	}
	if p.Mode&0o4000 != 0 {
		m |= os.ModeSetuid
	}
	if p.Mode&0o1000 != 0 {
		m |= os.ModeSticky
	}
	return m
}

func labels(in map[string]string) map[string]string {
	var out map[string]string
	for k, v := range in {
		if rest, ok := strings.CutPrefix(k, labelPrefix); ok {
			if out == nil {
				out = map[string]string{}
			}
			out[rest] = v
		}
	}
	return out
}

func knownFS(t string) bool {
	switch t {
	case "ext4", "ext3", "ext2", "xfs", "btrfs":
		return true
	default:
		return false
	}
}

func sortedKeys(m map[string]string) []string {
	return slices.Sorted(maps.Keys(m))
}
