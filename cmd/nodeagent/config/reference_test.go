// SPDX-License-Identifier: Apache-2.0

package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the reference into docs/configuration.md")

const (
	top    = "../../.."
	module = "github.com/nodeagent/nodeagent/"
)

// reference lists every field of the file with the comment that it has in the
// code, in the order of the code.
type reference struct {
	t        *testing.T
	out      strings.Builder
	comments map[string]map[string]string // by package, then Type.Field
}

// TestReference: docs/configuration.md has every field, with the words of the
// code. -update writes them there.
func TestReference(t *testing.T) {
	r := &reference{t: t, comments: map[string]map[string]string{}}
	r.out.WriteString("| field | what |\n|---|---|\n")
	r.walk("", reflect.TypeFor[Configuration]())
	path := filepath.Join(top, "docs/configuration.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- fields -->\n\n", "\n<!-- end -->\n"
	head, rest, ok := strings.Cut(string(text), begin)
	have, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the fields", path)
	}
	if have == r.out.String() {
		return
	}
	if !*update {
		t.Fatalf("%s does not say what the code says: go test ./cmd/nodeagent/config -update", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+r.out.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// walk lists the fields of a struct; prefix is its place in the file.
func (r *reference) walk(prefix string, typ reflect.Type) {
	last := ""
	for f := range typ.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			r.walk(prefix, f.Type)
		}
		if name == "-" || name == "" {
			continue
		}
		comment := r.comment(typ, f.Name)
		if comment == "" && strings.Contains(last, f.Name) {
			comment = last // one for several fields
		}
		last = comment
		r.list(prefix, name, comment, f.Type)
	}
}

// list writes a field's row, and those of the fields in it.
func (r *reference) list(prefix, name, comment string, typ reflect.Type) {
	place := prefix + name
	switch typ.Kind() {
	case reflect.Slice:
		typ, place = typ.Elem(), place+"[]"
	case reflect.Map:
		typ, place = typ.Elem(), place+".NAME"
	case reflect.Pointer:
		typ = typ.Elem()
	default:
	}
	ours := typ.Kind() == reflect.Struct && strings.HasPrefix(typ.PkgPath(), module) && yamlFields(typ)
	if comment == "" && ours {
		comment = r.comment(typ, "")
	}
	if comment == "" {
		r.t.Errorf("%s%s has no comment", prefix, name)
	}
	if prefix != "" || !ours { // sections have a table of their own
		fmt.Fprintf(&r.out, "| `%s%s` | %s |\n", prefix, name, comment)
	}
	if ours {
		r.walk(place+".", typ)
	}
}

func yamlFields(typ reflect.Type) bool {
	for f := range typ.Fields() {
		if f.Tag.Get("yaml") != "" {
			return true
		}
	}
	return false
}

// comment is that of a field, or of the type itself, on one line.
func (r *reference) comment(typ reflect.Type, field string) string {
	pkg := typ.PkgPath()
	if r.comments[pkg] == nil {
		r.comments[pkg] = map[string]string{}
		files, err := filepath.Glob(filepath.Join(top, strings.TrimPrefix(pkg, module), "*.go"))
		if err != nil {
			r.t.Fatal(err)
		}
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				r.t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool { return r.read(pkg, n) })
		}
	}
	text := r.comments[pkg][typ.Name()+"."+field]
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// read takes the comments of one declaration of structs.
func (r *reference) read(pkg string, n ast.Node) bool {
	decl, ok := n.(*ast.GenDecl)
	if !ok {
		return true
	}
	for _, s := range decl.Specs {
		spec, ok := s.(*ast.TypeSpec)
		if !ok {
			continue
		}
		r.comments[pkg][spec.Name.Name+"."] = decl.Doc.Text() + spec.Doc.Text()
		fields, ok := spec.Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, f := range fields.Fields.List {
			for _, name := range f.Names {
				r.comments[pkg][spec.Name.Name+"."+name.Name] = f.Doc.Text() + f.Comment.Text()
			}
		}
	}
	return false
}
