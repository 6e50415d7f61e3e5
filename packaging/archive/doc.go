// SPDX-License-Identifier: Apache-2.0

// Package archive writes Debian and RPM packages and an OCI image archive from a
// list of files: RPM's by rpmpack, the others by the standard library. The same files give the same
// bytes: times are those of the release, owners are root, order is by path.
package archive
