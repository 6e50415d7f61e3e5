// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credential is what one pull may show to registries.
type credential struct {
	// user and secret answer a challenge; an empty user makes the secret a
	// refresh token (the CRI's identity token).
	user, secret string
	// bearer is sent as it is, only to the image's own registry.
	bearer string
	// server limits user and secret to one host; empty: the image's registry
	// and the mirrors that the administrator configured for it.
	server string
}

// parseAuth reads the CRI's credentials in all their forms. Username wins over
// identity_token, auth and registry_token, as in containerd.
func parseAuth(a *runtimeapi.AuthConfig) (credential, error) {
	c := credential{server: serverHost(a.GetServerAddress())}
	switch {
	case a.GetUsername() != "":
		c.user, c.secret = a.GetUsername(), a.GetPassword()
	case a.GetIdentityToken() != "":
		c.secret = a.GetIdentityToken()
	case a.GetAuth() != "":
		user, secret, err := decodeAuth(a.GetAuth())
		if err != nil {
			return credential{}, err
		}
		c.user, c.secret = user, secret
	case a.GetRegistryToken() != "":
		if !isToken(a.GetRegistryToken()) {
			return credential{}, fmt.Errorf("auth.registry_token: not a bearer token: %w", errdefs.ErrInvalidArgument)
		}
		c.bearer = a.GetRegistryToken()
	}
	return c, nil
}

// decodeAuth reads the base64 of "user:password", padded or not; some tools
// append zero bytes to the password.
func decodeAuth(s string) (user, secret string, err error) {
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(s), "="))
	if err != nil {
		return "", "", fmt.Errorf("auth.auth: not base64: %w", errdefs.ErrInvalidArgument)
	}
	user, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", fmt.Errorf("auth.auth: not of the form user:password: %w", errdefs.ErrInvalidArgument)
	}
	return user, strings.Trim(secret, "\x00"), nil
}

// isToken says whether s has only the characters of a bearer token (RFC 6750).
func isToken(s string) bool {
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=") == ""
}

// serverHost reduces a server address, with or without a scheme and path, to
// its host. All names of Docker Hub are one.
func serverHost(address string) string {
	_, rest, ok := strings.Cut(address, "://")
	if !ok {
		rest = address
	}
	host, _, _ := strings.Cut(rest, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io", "docker.io":
		return "docker.io"
	}
	return host
}

// forHost answers containerd's question for credentials.
func (c credential) forHost(host string) (user, secret string, err error) {
	if c.server != "" && c.server != serverHost(host) {
		return "", "", nil
	}
	return c.user, c.secret, nil
}

// fingerprint makes pulls with other credentials other pulls, without keeping
// the secrets.
func (c credential) fingerprint() string {
	h := sha256.New()
	for _, s := range []string{c.user, c.secret, c.bearer, c.server} {
		h.Write(fmt.Appendf(nil, "%d:%s", len(s), s))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// registryAccess is how containerd reaches the registry in one pull.
type registryAccess struct {
	hostsDir string
	header   http.Header
	remove   func()
}

// access prepares hosts configuration and headers. A bearer token must reach
// only the image's own registry. The transfer service would send a header to
// mirrors too, so when there may be some, the token is written into a private
// copy of the registry's hosts.toml, whose top level is about the registry.
func (s *Service) access(c credential, host, hostsDir string) (registryAccess, error) {
	a := registryAccess{hostsDir: hostsDir, remove: func() {}}
	if c.bearer == "" {
		return a, nil
	}
	dir := hostsOf(hostsDir, host)
	var text []byte
	var err error
	if dir != "" {
		text, err = os.ReadFile(filepath.Join(dir, "hosts.toml"))
	}
	if dir == "" || errors.Is(err, fs.ErrNotExist) {
		a.header = http.Header{"Authorization": {"Bearer " + c.bearer}}
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("read hosts configuration: %w", err)
	}
	root, err := privateHosts(s.cfg.StateDir, dir, withToken(text, c.bearer))
	if err != nil {
		return a, fmt.Errorf("write hosts configuration for token: %w", err)
	}
	a.hostsDir, a.remove = root, func() { _ = os.RemoveAll(root) }
	return a, nil
}

// hostsDir returns the root of the hosts.toml files for a registry and the pods of
// a namespace: the namespace's own when it has one for the registry.
func (s *Service) hostsDir(namespace, host string) (string, error) {
	if namespace == "" || s.cfg.NamespaceHostsDir == "" {
		return s.cfg.HostsDir, nil
	}
	if !filepath.IsLocal(namespace) || strings.ContainsRune(namespace, filepath.Separator) {
		return "", fmt.Errorf("sandbox_config.metadata.namespace: %q is no name: %w", namespace, errdefs.ErrInvalidArgument)
	}
	if dir := filepath.Join(s.cfg.NamespaceHostsDir, namespace); hostsOf(dir, host) != "" {
		return dir, nil
	}
	return s.cfg.HostsDir, nil
}

// hostsOf returns the directory that containerd reads for a host, "" for none.
func hostsOf(root, host string) string {
	if root == "" {
		return ""
	}
	names := []string{host, "_default"}
	if name, port, ok := strings.Cut(host, ":"); ok {
		names = append([]string{name + "_" + port + "_"}, names...)
	}
	for _, n := range names {
		dir := filepath.Join(root, n)
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return ""
}

// privateHosts makes a hosts root in which any host finds this text and the
// other files of dir.
func privateHosts(state, dir string, text []byte) (string, error) {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", err
	}
	root, err := os.MkdirTemp(state, "hosts-")
	if err != nil {
		return "", err
	}
	private := filepath.Join(root, "_default")
	err = os.Mkdir(private, 0o700)
	if err == nil {
		err = linkOthers(dir, private)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(private, "hosts.toml"), text, 0o600)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(root))
	}
	return root, nil
}

// linkOthers makes the files beside hosts.toml, which it may name relatively,
// appear in another directory.
func linkOthers(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "hosts.toml" {
			continue
		}
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// withToken adds the header to the top level of a hosts.toml. The text is
// changed rather than parsed and written anew, because the order of its hosts
// matters.
func withToken(text []byte, token string) []byte {
	line := fmt.Sprintf("Authorization = [\"Bearer %s\"]\n", token)
	var out bytes.Buffer
	done := false
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		out.Write(sc.Bytes())
		out.WriteByte('\n')
		if strings.TrimSpace(sc.Text()) == "[header]" {
			out.WriteString(line)
			done = true
		}
	}
	if done {
		return out.Bytes()
	}
	return append([]byte("header."+line), out.Bytes()...)
}
