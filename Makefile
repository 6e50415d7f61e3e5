# SPDX-License-Identifier: Apache-2.0

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CACHE   := $(or $(NODEAGENT_CACHE),/var/cache/nodeagent)
TOOLS   := $(CACHE)/bin
VERSION ?= v0.1.0-$(shell git rev-parse --short HEAD 2>/dev/null || echo devel)
MODULE  := github.com/nodeagent/nodeagent
LDFLAGS := -s -w -X main.version=$(VERSION)
# gRPC's trace pages run html/template, with which the linker can drop no method of any type: a third of the program.
TAGS    := grpcnotrace
COMMANDS = $(notdir $(wildcard cmd/nodeagent*))
# What the cluster of `make run` and of the black-box tests is made with; static, for web goes into an image.
HARNESS = go run ./packaging/build --storage bin/storage.yaml && cd tests/e2e && CGO_ENABLED=0 go build -o ../../bin/ ./cmd/cluster ./cmd/web ./cmd/foreigncsi
# How long one package's tests may take: several times what they do here, for machines that are slower.
PATIENCE = -timeout 40m
export PATH := $(TOOLS):$(PATH)

.PHONY: help
help: ## show what there is to make
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install Debian packages and build containerd, runc, Kubernetes and the tools, once, into $NODEAGENT_CACHE
	@tools/deps.sh $(ONLY)

.PHONY: generate
generate: ## regenerate what is made from C: the BPF programs, the sandbox init and the exec helper
	go generate ./bpf/... ./cri/sandbox/... ./cmd/nodeagent-shim/...

.PHONY: check-generate
check-generate: generate ## fail when generated files are not those that are committed
	git diff --exit-code -- bpf cri/sandbox cmd/nodeagent-shim

.PHONY: build
build: ## build the programs into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

.PHONY: fmt
fmt: ## format Go and C
	golangci-lint fmt ./...
	@git ls-files -z 'bpf/*.c' 'bpf/*.h' | xargs -0r clang-format-19 -i

.PHONY: lint
lint: ## run the linters
	golangci-lint run --allow-parallel-runners ./...
	cd tests/e2e && golangci-lint run --allow-parallel-runners --config ../../.golangci.yml ./...

.PHONY: test
test: deps check-generate lint test-unit test-root test-e2e test-conformance ## run every test, after what they need is there

.PHONY: test-unit
test-unit: ## run the tests that need no root
	go test $(PATIENCE) -skip '^(Test|Fuzz)Root' ./...
	cd tests/oracle && go test $(PATIENCE) ./...

.PHONY: test-root
test-root: ## run the tests that need root, each in namespaces of its own
	go test $(PATIENCE) -run '^(Test|Fuzz)Root' ./...

.PHONY: test-e2e
test-e2e: build ## run the black-box tests on a real one-node cluster (root)
	@$(HARNESS)
	cd tests/e2e && go test $(PATIENCE) $(if $(RUN),-run '$(RUN)') -v ./...

# What Kubernetes' own tests say within minutes: all of the network's, and the node's that do not wait for the clock.
QUICK = \[sig-network\].*\[Conformance\]|\[sig-node\] (Downward|Containers|Variable|Security|Sysctls|ConfigMap|Secrets|Ephemeral|RuntimeClass|ImageVolume).*\[Conformance\]

.PHONY: test-conformance
test-conformance: build ## run the quick part of Kubernetes' conformance tests (root)
	@tools/deps.sh ginkgo e2e.test regression-issue-74839
	@$(HARNESS)
	bin/cluster conformance --focus '$(QUICK)' --skip '\[Slow\]' --procs 3

.PHONY: test-kernels
test-kernels: ## run tests of the data path, LVM, quotas and cgroup v2 on Linux 6.1, the oldest we promise, in an emulated machine (KERNELS="6.1 6.12" ROOMS= RUN= VERBOSE=1)
	@tools/deps.sh --emulator
	@ROOMS='$(ROOMS)' RUN='$(RUN)' tests/kernels/run.sh $(KERNELS)

.PHONY: test-machine
test-machine: package ## run the package, a kubelet and the CRI's black-box tests on a whole Debian with systemd, cgroup v2 and AppArmor, in an emulated machine (ROOMS= RUN= VERBOSE=1)
	@tools/deps.sh --emulator
	@tools/deps.sh containerd runc kubelet kubectl coredns agnhost
	@$(HARNESS)
	@RUN='$(RUN)' VERBOSE='$(VERBOSE)' tests/machine/run.sh $(ROOMS)

.PHONY: e2e-conformance
e2e-conformance: deps build ## run Kubernetes' own tests of node, network and storage (FOCUS= SKIP= PROCS=)
	@tools/deps.sh ginkgo e2e.test regression-issue-74839
	@$(HARNESS)
	bin/cluster conformance $(if $(FOCUS),--focus '$(FOCUS)') $(if $(SKIP),--skip '$(SKIP)') $(if $(PROCS),--procs $(PROCS)) $(ARGS)

.PHONY: e2e-node
e2e-node: deps build ## run Kubernetes' own tests of a node with its kubelet, which they start (FOCUS= SKIP= PROCS=)
	@tools/deps.sh ginkgo e2e_node.test regression-issue-74839
	@$(HARNESS)
	bin/cluster node-tests $(if $(FOCUS),--focus '$(FOCUS)') $(if $(SKIP),--skip '$(SKIP)') $(if $(PROCS),--procs $(PROCS)) $(ARGS)

.PHONY: e2e-storage
e2e-storage: deps build ## run Kubernetes' own tests of storage drivers on each of our classes (DRIVERS="xfs ext4 btrfs memory" FOCUS= SKIP= PROCS=)
	@tools/deps.sh ginkgo e2e.test
	@$(HARNESS)
	bin/cluster conformance --name storage --report dist/storage --focus '$(or $(FOCUS),External.Storage)' \
		--skip '$(or $(SKIP),\[Disruptive\]|\[Slow\]|\[Serial\]|\[Feature:SELinux)' --procs $(or $(PROCS),3) \
		$(patsubst %,--driver tests/e2e/drivers/%.yaml,$(or $(DRIVERS),xfs ext4 btrfs memory)) $(ARGS)

.PHONY: run
run: deps build ## start a one-node cluster with a demo in namespaces of its own (DETACH=1 leaves it in the background)
	@$(HARNESS)
	@bin/cluster demo $(if $(DETACH),--detach) $(ARGS)

.PHONY: stop
stop: ## end the cluster that make run DETACH=1 left
	@test -x bin/cluster || { $(HARNESS); }
	@bin/cluster down $(ARGS)

.PHONY: bench
bench: deps build ## measure nodeagent beside its peers (ARGS="--only cri,network --quick --resume"), results in tests/bench/out (root)
	@$(HARNESS)
	@go build -o bin/ ./tests/bench
	@bin/bench run $(ARGS)

.PHONY: bench-report
bench-report: ## print what the benchmarks have stored, with targets and marks
	@go run ./tests/bench report $(ARGS)

.PHONY: bench-docs
bench-docs: ## write what the benchmarks have stored into docs/benchmarks.md and README.md
	@go run ./tests/bench docs $(ARGS)

.PHONY: package
package: build ## make the deb, the rpm, the OCI image archive, the Helm chart and the manifests in dist/
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) go run ./packaging/build --version $(VERSION) --bin bin --out dist

.PHONY: clean
clean: ## remove what make made in the tree (the cache stays)
	rm -rf bin dist
