// SPDX-License-Identifier: Apache-2.0

package tracing

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// million is what the sampling rate is a part of.
const million = 1_000_000

// Config says where traces go and which calls are traced.
type Config struct {
	// Endpoint is the host:port of an OpenTelemetry collector that takes OTLP over gRPC; empty: no traces.
	Endpoint string `yaml:"endpoint"`
	// SamplingRatePerMillion is how many of a million calls begin a trace where the caller sends none; a trace that the caller sends
	// is continued when the caller samples it. Reloaded on SIGHUP.
	SamplingRatePerMillion int `yaml:"samplingRatePerMillion"`
	// Insecure speaks to the collector without TLS.
	Insecure bool `yaml:"insecure"`
	// CAFile verifies the collector's certificate; empty: the machine's own authorities.
	CAFile string `yaml:"caFile"`
	// CertFile and KeyFile are shown to a collector that asks for a certificate.
	CertFile string `yaml:"certFile"`
	KeyFile  string `yaml:"keyFile"`
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	if c.Endpoint != "" {
		if host, port, err := net.SplitHostPort(c.Endpoint); err != nil || host == "" || port == "" {
			errs = append(errs, fmt.Errorf("endpoint: %q is not host:port", c.Endpoint))
		}
	}
	if c.SamplingRatePerMillion < 0 || c.SamplingRatePerMillion > million {
		errs = append(errs, fmt.Errorf("samplingRatePerMillion: %d is not within 0 to %d", c.SamplingRatePerMillion, million))
	}
	for _, f := range []struct{ name, path string }{{"caFile", c.CAFile}, {"certFile", c.CertFile}, {"keyFile", c.KeyFile}} {
		switch {
		case f.path == "":
		case c.Insecure:
			errs = append(errs, fmt.Errorf("%s: means nothing with insecure: true", f.name))
		case !filepath.IsAbs(f.path):
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", f.name, f.path))
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("certFile: goes with keyFile, and one of them is missing"))
	}
	return errors.Join(errs...)
}

// credentials reads the files that the configuration names.
func (c Config) credentials() (credentials.TransportCredentials, error) {
	if c.Insecure {
		return insecure.NewCredentials(), nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the collector's authority: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the collector's authority: %s holds no certificate", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate for the collector: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(conf), nil
}

// ContainerdEnv is the environment in which a containerd continues the traces that it is sent, and begins none; nil without an
// endpoint.
func (c Config) ContainerdEnv() []string {
	if c.Endpoint == "" {
		return nil
	}
	scheme := "https://"
	if c.Insecure {
		scheme = "http://"
	}
	env := []string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + scheme + c.Endpoint, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc",
		"OTEL_TRACES_SAMPLER=parentbased_always_off",
	}
	for _, f := range []struct{ name, path string }{
		{"CERTIFICATE", c.CAFile}, {"CLIENT_CERTIFICATE", c.CertFile}, {"CLIENT_KEY", c.KeyFile},
	} {
		if f.path != "" {
			env = append(env, "OTEL_EXPORTER_OTLP_TRACES_"+f.name+"="+f.path)
		}
	}
	return env
}
