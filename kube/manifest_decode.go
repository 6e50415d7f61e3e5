// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// manifestObject is one object of a file: defaulted, validated and slimmed,
// as an API server and its watch would have delivered it.
type manifestObject struct {
	kind   kind
	key    string // "namespace/name" or "name"
	object runtime.Object
	title  string // "Service default/web"
	where  string // "web.yaml:12"
}

// document is one YAML document of a file.
type document struct {
	file string
	line int // of its first line, from 1
	data []byte
}

// decodeManifest reads all objects of a file, or says all that is wrong with
// it, each fault with file and line.
func decodeManifest(file string, data []byte) ([]manifestObject, error) {
	dec, err := manifestDecoder()
	if err != nil {
		return nil, err
	}
	var objects []manifestObject
	var faults []error
	for _, doc := range splitDocuments(file, data) {
		objs, errs := doc.decode(dec)
		objects, faults = append(objects, objs...), append(faults, errs...)
	}
	return objects, errors.Join(faults...)
}

func manifestDecoder() (runtime.Decoder, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, networkingv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("make decoder: %w", err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(), nil
}

// splitDocuments cuts a file at its "---" lines.
func splitDocuments(file string, data []byte) []document {
	var docs []document
	cur := document{file: file, line: 1}
	line := 0
	for l := range bytes.Lines(data) {
		line++
		if rest, ok := bytes.CutPrefix(l, []byte("---")); ok && len(bytes.TrimSpace(rest)) == 0 {
			docs, cur = append(docs, cur), document{file: file, line: line + 1}
			continue
		}
		cur.data = append(cur.data, l...)
	}
	return append(docs, cur)
}

func (d document) decode(dec runtime.Decoder) ([]manifestObject, []error) {
	var root yamlv3.Node
	if err := yamlv3.Unmarshal(d.data, &root); err != nil {
		return nil, []error{d.syntax(err)}
	}
	if len(root.Content) == 0 || root.Content[0].Tag == "!!null" {
		return nil, nil // empty, or only comments
	}
	raw, err := yaml.YAMLToJSONStrict(d.data)
	if err != nil {
		return nil, []error{d.syntax(err)}
	}
	return d.decodeNode(dec, raw, root.Content[0])
}

// decodeNode reads one object, or each one of a List.
func (d document) decodeNode(dec runtime.Decoder, raw []byte, node *yamlv3.Node) ([]manifestObject, []error) {
	var head struct {
		metav1.TypeMeta `json:",inline"`

		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, []error{fmt.Errorf("%s: is not a Kubernetes object", d.at(node))}
	}
	if head.APIVersion == "" || head.Kind == "" {
		return nil, []error{fmt.Errorf("%s: is not a Kubernetes object: apiVersion and kind are required", d.at(node))}
	}
	if head.Kind == "List" && head.APIVersion == "v1" {
		var objects []manifestObject
		var faults []error
		for i, item := range head.Items {
			objs, errs := d.decodeNode(dec, item, locate(node, "items["+strconv.Itoa(i)+"]"))
			objects, faults = append(objects, objs...), append(faults, errs...)
		}
		return objects, faults
	}
	o, errs := d.decodeObject(dec, raw, node, head.TypeMeta)
	if len(errs) > 0 {
		return nil, errs
	}
	return []manifestObject{o}, nil
}

func (d document) decodeObject(dec runtime.Decoder, raw []byte, node *yamlv3.Node, head metav1.TypeMeta) (manifestObject, []error) {
	title := head.Kind
	obj, _, err := dec.Decode(raw, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return manifestObject{}, []error{fmt.Errorf(
			"%s: %s of %s is not among the kinds that the agent reads", d.at(node), head.Kind, head.APIVersion)}
	}
	if err != nil {
		return manifestObject{}, d.strict(node, head.Kind, err)
	}
	k, faults := prepare(obj)
	if k == "" {
		return manifestObject{}, []error{fmt.Errorf(
			"%s: %s of %s is not among the kinds that the agent reads", d.at(node), head.Kind, head.APIVersion)}
	}
	title += " " + objectKey(obj)
	if len(faults) > 0 {
		return manifestObject{}, d.fields(node, title, faults)
	}
	slimmed, err := slim(obj)
	if err != nil {
		return manifestObject{}, []error{fmt.Errorf("%s: %s: %w", d.at(node), title, err)}
	}
	out, ok := slimmed.(runtime.Object)
	if !ok {
		return manifestObject{}, []error{fmt.Errorf("%s: %s: is a %T", d.at(node), title, slimmed)}
	}
	return manifestObject{kind: k, key: objectKey(obj), object: out, title: title, where: d.at(node)}, nil
}

// at is where a node of the document stands.
func (d document) at(n *yamlv3.Node) string {
	line := d.line
	if n != nil && n.Line > 0 {
		line += n.Line - 1
	}
	return fmt.Sprintf("%s:%d", d.file, line)
}

// syntax gives a YAML error its line in the file.
func (d document) syntax(err error) error {
	msg := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "error converting YAML to JSON: "), "yaml: ")
	m := regexp.MustCompile(`(?s)^(?:unmarshal errors:\s+)?line (\d+): (.*)$`).FindStringSubmatch(msg)
	if m == nil {
		return fmt.Errorf("%s:%d: %s", d.file, d.line, msg)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		n = 1
	}
	// The YAML library counts lines from 0 in faults of its parser, and from 1
	// in those of its scanner.
	if regexp.MustCompile(`^did not find expected (node content|key|'|<)`).MatchString(m[2]) {
		n++
	}
	return fmt.Errorf("%s:%d: %s", d.file, d.line+n-1, m[2])
}

// strict gives each fault of a strict decoding its line.
func (d document) strict(node *yamlv3.Node, title string, err error) []error {
	if name := locate(node, "metadata.name"); name != nil && name != node && name.Value != "" {
		title += " " + name.Value
	}
	var faults []error
	strictErr, ok := runtime.AsStrictDecodingError(err)
	misfit := regexp.MustCompile(`cannot unmarshal (\S+) .*into Go struct field \w+\.(\S+) of type (\S+)`)
	if m := misfit.FindStringSubmatch(err.Error()); !ok && m != nil {
		return []error{fmt.Errorf("%s: %s: %s: is a %s, want %s", d.at(locate(node, m[2])), title, m[2], m[1], m[3])}
	}
	if !ok {
		return []error{fmt.Errorf("%s: %s: %w", d.at(node), title, err)}
	}
	quoted := regexp.MustCompile(`"([^"]+)"`)
	for _, e := range strictErr.Errors() {
		at := node
		if m := quoted.FindStringSubmatch(e.Error()); m != nil {
			at = locate(node, m[1])
		}
		faults = append(faults, fmt.Errorf("%s: %s: %w", d.at(at), title, e))
	}
	return faults
}

// fields gives each fault of a validation its line.
func (d document) fields(node *yamlv3.Node, title string, faults field.ErrorList) []error {
	out := make([]error, 0, len(faults))
	for _, f := range faults {
		out = append(out, fmt.Errorf("%s: %s: %w", d.at(locate(node, f.Field)), title, f))
	}
	return out
}

// locate is the node at a path like "spec.ports[0].port", or the deepest one
// on the way to it that exists.
func locate(n *yamlv3.Node, path string) *yamlv3.Node {
	path = strings.ReplaceAll(path, "[", ".[")
	for step := range strings.SplitSeq(path, ".") {
		if step == "" {
			continue
		}
		next := child(n, step)
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func child(n *yamlv3.Node, step string) *yamlv3.Node {
	index := strings.Trim(step, "[]")
	if n == nil {
		return nil
	}
	if n.Kind == yamlv3.SequenceNode {
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i]
		}
		return nil
	}
	for i := 0; n.Kind == yamlv3.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == index {
			v := n.Content[i+1]
			if v.Kind == yamlv3.ScalarNode {
				return v
			}
			// A mapping's own line is that of its first key; the line of the
			// field's name is what a person looks for.
			return &yamlv3.Node{Kind: v.Kind, Content: v.Content, Line: n.Content[i].Line, Value: v.Value, Tag: v.Tag}
		}
	}
	return nil
}
