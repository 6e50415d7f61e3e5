// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// Dir is the directory of one sandbox below the state directory; its methods
// name what containers of the pod mount.
type Dir string

// Hostname is the file for /etc/hostname.
func (d Dir) Hostname() string { return filepath.Join(string(d), "hostname") }

// Hosts is the file for /etc/hosts of containers for which the kubelet brings none.
func (d Dir) Hosts() string { return filepath.Join(string(d), "hosts") }

// ResolvConf is the file for /etc/resolv.conf.
func (d Dir) ResolvConf() string { return filepath.Join(string(d), "resolv.conf") }

// Shm is the mount point of the pod's own /dev/shm. On the host's IPC it is not there.
func (d Dir) Shm() string { return filepath.Join(string(d), "shm") }

// Container is the directory of one container's run-time files.
func (d Dir) Container(id string) string { return filepath.Join(string(d), "containers", id) }

// write makes the sandbox's directory with its files and, unless the pod uses
// the host's IPC, its shared memory.
func (d Dir) write(sb *store.Sandbox, hostname string, shmSize int64) error {
	if err := os.MkdirAll(string(d), 0o711); err != nil {
		return fmt.Errorf("make sandbox directory: %w", err)
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the node's hosts: %w", err)
	}
	resolv, err := resolvConf(sb.Config.M.GetDnsConfig())
	if err != nil {
		return err
	}
	for path, text := range map[string][]byte{
		d.Hostname():   []byte(hostname + "\n"),
		d.Hosts():      hosts,
		d.ResolvConf(): resolv,
	} {
		if err := os.WriteFile(path, text, 0o644); err != nil { //nolint:gosec // every user of the pod reads them
			return fmt.Errorf("write file of sandbox: %w", err)
		}
	}
	if sb.NamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		return nil
	}
	return d.mountShm(sb, shmSize)
}

func (d Dir) mountShm(sb *store.Sandbox, size int64) error {
	if err := os.MkdirAll(d.Shm(), 0o700); err != nil {
		return fmt.Errorf("make shared memory: %w", err)
	}
	if err := unmount(d.Shm()); err != nil {
		return err
	}
	data := fmt.Sprintf("mode=1777,size=%d", size)
	if user := userNamespace(sb.NamespaceOptions()); user != nil {
		data += fmt.Sprintf(",uid=%d,gid=%d", user.Uids[0].GetHostId(), user.Gids[0].GetHostId())
	}
	if err := unix.Mount("shm", d.Shm(), "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, withLabel(data, sb.MountLabel)); err != nil {
		return fmt.Errorf("mount shared memory at %s: %w", d.Shm(), err)
	}
	return nil
}

// release unmounts what is mounted in the directory.
func (d Dir) release() error { return unmount(d.Shm()) }

// remove releases and removes the directory; the absent is removed already.
func (d Dir) remove() error {
	if err := d.release(); err != nil {
		return err
	}
	if err := os.RemoveAll(string(d)); err != nil {
		return fmt.Errorf("remove sandbox directory: %w", err)
	}
	return nil
}

// resolvConf renders the pod's DNS configuration; without one the node's is copied.
func resolvConf(dns *runtimeapi.DNSConfig) ([]byte, error) {
	if len(dns.GetServers()) == 0 && len(dns.GetSearches()) == 0 && len(dns.GetOptions()) == 0 {
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
		}
		return b, nil
	}
	var b strings.Builder
	if s := dns.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := dns.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return []byte(b.String()), nil
}
