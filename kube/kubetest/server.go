// SPDX-License-Identifier: Apache-2.0

// Package kubetest runs a real kube-apiserver on a real etcd for tests, on
// loopback and in a directory of the test. The binaries come from
// $NODEAGENT_CACHE/bin (made by `make deps`).
package kubetest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// AdminToken authenticates a cluster administrator.
	AdminToken = "admin-token"
	// ServiceIP is the ClusterIP of the service "kubernetes": the server's
	// certificate is valid for it, and nothing listens there.
	ServiceIP = "10.96.0.1"

	readyTimeout = 2 * time.Minute
)

// Server is a running API server with its etcd.
type Server struct {
	dir       string
	port      int
	etcdPort  int
	etcd, api *process
	manager   *process
}

// Start runs etcd and an API server whose files are in dir.
func Start(ctx context.Context, dir string) (*Server, error) {
	s := &Server{dir: dir}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s.port, s.etcdPort = ports[0], ports[1]
	if err := s.writeFiles(); err != nil {
		return nil, err
	}
	etcdURL := "http://" + addr(s.etcdPort)
	peerURL := "http://" + addr(ports[2])
	s.etcd, err = run(dir, "etcd", "--data-dir="+filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL,
		"--initial-cluster=default="+peerURL, "--log-level=warn")
	if err != nil {
		return nil, err
	}
	if err := s.StartAPI(ctx); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// StartAPI runs the API server alone, after StopAPI; it has the same port and
// the same objects again.
func (s *Server) StartAPI(ctx context.Context) error {
	certs := filepath.Join(s.dir, "certs")
	key := filepath.Join(s.dir, "sa.key")
	var err error
	s.api, err = run(s.dir, "kube-apiserver",
		"--etcd-servers=http://"+addr(s.etcdPort), "--bind-address=127.0.0.1", "--secure-port="+strconv.Itoa(s.port),
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--cert-dir="+certs,
		"--service-cluster-ip-range=10.96.0.0/16", "--service-account-issuer=https://kubetest", "--api-audiences=https://kubetest",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		"--authorization-mode=Node,RBAC", "--token-auth-file="+filepath.Join(s.dir, "tokens.csv"),
		"--disable-admission-plugins=ServiceAccount", "--enable-priority-and-fairness=false",
		"--allow-privileged=true", "--profiling=false", "--v=0")
	if err != nil {
		return err
	}
	return s.awaitReady(ctx)
}

// StopAPI ends the API server and leaves etcd and its objects.
func (s *Server) StopAPI() error { return s.api.stop() }

// StartControllers runs kube-controller-manager with the named controllers
// alone, once.
func (s *Server) StartControllers(names ...string) error {
	if s.manager != nil {
		return nil
	}
	kubeconfig, err := s.Kubeconfig("manager", AdminToken, "")
	if err != nil {
		return err
	}
	s.manager, err = run(s.dir, "kube-controller-manager", "--kubeconfig="+kubeconfig,
		"--controllers="+strings.Join(names, ","), "--leader-elect=false", "--secure-port=0",
		"--pvclaimbinder-sync-period=1s", "--kube-api-qps=500", "--kube-api-burst=500", "--v=0")
	return err
}

// StartSnapshotController runs the upstream snapshot-controller, which is not told
// about nodes, until stop is called. The server has to know the snapshot API.
func (s *Server) StartSnapshotController() (stop func() error, err error) {
	kubeconfig, err := s.Kubeconfig("snapshot-controller", AdminToken, "")
	if err != nil {
		return nil, err
	}
	p, err := run(s.dir, "snapshot-controller", "--kubeconfig="+kubeconfig, "--kube-api-qps=100", "--kube-api-burst=200",
		"--retry-interval-start=100ms", "--retry-interval-max=1s")
	if err != nil {
		return nil, err
	}
	return p.stop, nil
}

// Stop ends all.
func (s *Server) Stop() error {
	return errors.Join(s.manager.stop(), s.api.stop(), s.etcd.stop())
}

// Addr is where the API server listens.
func (s *Server) Addr() string { return addr(s.port) }

// Kubeconfig writes a kubeconfig for a token and returns its path. server may
// be empty; it says under which name the server is called.
func (s *Server) Kubeconfig(name, token, server string) (string, error) {
	if server == "" {
		server = "https://" + s.Addr()
	}
	path := filepath.Join(s.dir, name+".kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"c": {
			Server: server, CertificateAuthority: filepath.Join(s.dir, "certs", "apiserver.crt"),
		}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
	return path, err
}

// Client is an administrator's client.
func (s *Server) Client() (kubernetes.Interface, error) {
	path, err := s.Kubeconfig("admin", AdminToken, "")
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = 500, 500
	return kubernetes.NewForConfig(cfg)
}

func (s *Server) writeFiles() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
		"tokens.csv": []byte(AdminToken + `,admin,1,"system:masters"` + "\n"),
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// awaitReady asks until the server says that it is ready, or has ended.
func (s *Server) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	client, err := s.Client()
	for err != nil { // the certificate is written by the server itself
		if err := s.api.pause(ctx); err != nil {
			return err
		}
		client, err = s.Client()
	}
	for {
		code := 0
		client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&code)
		if code == http.StatusOK {
			return nil
		}
		if err := s.api.pause(ctx); err != nil {
			return err
		}
	}
}

// process is a child with its log in a file.
type process struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
	once      sync.Once
}

func run(dir, name string, args ...string) (*process, error) {
	cache := os.Getenv("NODEAGENT_CACHE")
	if cache == "" {
		cache = "/var/cache/nodeagent"
	}
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	//nolint:noctx // it is ended by stop, not by the context of the one who started it
	p.cmd = exec.Command(filepath.Join(cache, "bin", name), args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make deps builds it): %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// pause waits a little, or says why there is nothing to wait for.
func (p *process) pause(ctx context.Context) error {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended: %s", p.name, p.tail())
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w: %s", p.name, context.Cause(ctx), p.tail())
	case <-t.C:
		return nil
	}
}

func (p *process) tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	const most = 2000
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (p *process) stop() error {
	if p == nil {
		return nil
	}
	var err error
	p.once.Do(func() {
		if kerr := p.cmd.Process.Kill(); kerr != nil && !errors.Is(kerr, os.ErrProcessDone) {
			err = fmt.Errorf("end %s: %w", p.name, kerr)
			return
		}
		<-p.ended
	})
	return err
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// freePorts are ports that nobody listens on now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		//nolint:noctx // nothing to wait for
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			ports = append(ports, a.Port)
		}
	}
	return ports, nil
}
