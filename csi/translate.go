// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// maxName is how long a name may be, in characters.
const maxName = 128

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", volume.ErrInvalid, fmt.Sprintf(format, args...))
}

// required reports the first field that is empty; pairs are name, value.
func required(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			return invalid("%s is missing", pairs[i])
		}
	}
	return nil
}

func checkName(name string) error {
	if err := required("name", name); err != nil {
		return err
	}
	if len([]rune(name)) > maxName || strings.ContainsFunc(name, unicode.IsControl) {
		return invalid("name is longer than %d characters or has control characters", maxName)
	}
	return nil
}

func capability(c *csipb.VolumeCapability) (volume.Capability, error) {
	var out volume.Capability
	if c == nil {
		return out, invalid("volume capability is missing")
	}
	switch t := c.GetAccessType().(type) {
	case *csipb.VolumeCapability_Block:
		out.Block = true
	case *csipb.VolumeCapability_Mount:
		out.FSType, out.Flags, out.Group = t.Mount.GetFsType(), t.Mount.GetMountFlags(), t.Mount.GetVolumeMountGroup()
	default:
		return out, invalid("volume capability: access type is missing or unknown")
	}
	mode, ok := map[csipb.VolumeCapability_AccessMode_Mode]volume.AccessMode{
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        volume.SingleWriter,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   volume.SingleReader,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: volume.SinglePodWriter,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  volume.NodePodsWriter,
		csipb.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:    volume.MultiReader,
		csipb.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER:  volume.MultiNodeWriter,
		csipb.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:   volume.MultiNodeWriters,
	}[c.GetAccessMode().GetMode()]
	if !ok {
		return out, invalid("volume capability: access mode is missing or unknown")
	}
	out.Mode = mode
	return out, nil
}

func capabilities(in []*csipb.VolumeCapability) ([]volume.Capability, error) {
	if len(in) == 0 {
		return nil, invalid("volume capabilities are missing")
	}
	out := make([]volume.Capability, 0, len(in))
	for _, c := range in {
		v, err := capability(c)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func contentSource(in *csipb.VolumeContentSource) (*volume.SourceRef, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no source is an ordinary case
	}
	var ref volume.SourceRef
	switch t := in.GetType().(type) {
	case *csipb.VolumeContentSource_Snapshot:
		ref = volume.SourceRef{Kind: volume.KindSnapshot, ID: t.Snapshot.GetSnapshotId()}
	case *csipb.VolumeContentSource_Volume:
		ref = volume.SourceRef{Kind: volume.KindVolume, ID: t.Volume.GetVolumeId()}
	default:
		return nil, invalid("volume content source: type is missing or unknown")
	}
	if err := required("volume content source: id", ref.ID); err != nil {
		return nil, err
	}
	return &ref, nil
}

func sourceProto(ref *volume.SourceRef) *csipb.VolumeContentSource {
	switch {
	case ref == nil:
		return nil
	case ref.Kind == volume.KindSnapshot:
		return &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Snapshot{
			Snapshot: &csipb.VolumeContentSource_SnapshotSource{SnapshotId: ref.ID},
		}}
	default:
		return &csipb.VolumeContentSource{Type: &csipb.VolumeContentSource_Volume{
			Volume: &csipb.VolumeContentSource_VolumeSource{VolumeId: ref.ID},
		}}
	}
}

// reachable says whether a topology requirement can be met by this node.
func (s *Server) reachable(req *csipb.TopologyRequirement) bool {
	if len(req.GetRequisite()) == 0 && len(req.GetPreferred()) == 0 {
		return true
	}
	terms := req.GetRequisite()
	if len(terms) == 0 {
		return true // preferences bind nobody
	}
	return slices.ContainsFunc(terms, s.matches)
}

func (s *Server) matches(t *csipb.Topology) bool {
	for k, v := range t.GetSegments() {
		if k == s.cfg.TopologyKey() && v != s.cfg.NodeName {
			return false
		}
	}
	return true
}

// page cuts a list of ids that is in order: tokens name the last id of the page
// before.
type page struct {
	from, to int
	next     string
}

func cutPage(ids []string, token string, most int32) (page, error) {
	if most < 0 {
		return page{}, invalid("max_entries is negative")
	}
	p := page{to: len(ids)}
	if token != "" {
		last, ok := strings.CutPrefix(token, "after:")
		if !ok {
			return page{}, fmt.Errorf("%w: %q", volume.ErrToken, token)
		}
		for p.from < len(ids) && ids[p.from] <= last {
			p.from++
		}
	}
	if most > 0 && p.from+int(most) < p.to {
		p.to = p.from + int(most)
		p.next = "after:" + ids[p.to-1]
	}
	return p, nil
}
