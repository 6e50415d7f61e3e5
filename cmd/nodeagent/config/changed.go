// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Changed lists the paths of the fields that differ between two
// configurations, without those named in except.
func Changed(a, b *Configuration, except ...string) []string {
	var out []string
	diff(reflect.ValueOf(*a), reflect.ValueOf(*b), "", &out)
	return slices.DeleteFunc(out, func(p string) bool { return slices.Contains(except, p) })
}

func diff(a, b reflect.Value, path string, out *[]string) {
	if a.Kind() != reflect.Struct || a.NumField() == 0 || a.Type().Field(0).PkgPath != "" {
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			*out = append(*out, path)
		}
		return
	}
	for i := range a.NumField() {
		field := a.Type().Field(i)
		name, opts, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		sub := path
		if !strings.Contains(opts, "inline") {
			sub = strings.TrimPrefix(fmt.Sprintf("%s.%s", path, name), ".")
		}
		diff(a.Field(i), b.Field(i), sub, out)
	}
}
