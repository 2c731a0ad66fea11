# Lamina. `make` alone lists what there is.

SHELL := /bin/bash
# Versions are given by -ldflags; to ask git fails in a checkout of another owner.
export GOFLAGS += -buildvcs=false
# The linter keeps findings with the paths of the checkout that they came from.
export GOLANGCI_LINT_CACHE := $(CURDIR)/.cache/golangci-lint
version := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Modules beside the main one: containerd's programs, the node of Kubernetes, the linter and the packager.
modules := integration/containerd integration/kubernetes integration/lint integration/packager

say = @printf '\n== %s\n'

.PHONY: help build deb man demo test test-here test-guests torture lint bench bench-more captures fuzz vulncheck guest clean root

help:
	@echo 'make build   bin/lamina, a static binary'
	@echo "make deb     bin/lamina_VERSION_ARCH.deb, Debian's package; GOARCH=arm64 for another architecture"
	@echo 'make man     the manual pages, into bin/man'
	@echo 'make demo    install what is missing, then run a Debian container on Lamina'
	@echo 'make test    install what is missing, then run all tests (needs root; some twenty minutes)'
	@echo 'make torture the crash tests with all their kills and power cuts (needs root; an hour or more)'
	@echo 'make lint    golangci-lint, shellcheck, go vet and the state of go.mod, over all modules'
	@echo 'make bench   Lamina measured beside containerd, with the targets; BENCH="-o json" for its flags (a quarter of an hour)'
	@echo 'make bench-more  the benchmarks of the packages, and commits of containers (up to an hour)'
	@echo 'make captures  put what lamina prints of a real root into the README'
	@echo "make guest CMD='...'  run a command in a guest kernel that has device mapper"
	@echo 'make fuzz    each fuzz target for a minute; FUZZTIME=10m for longer'
	@echo 'make vulncheck  govulncheck over all modules; it needs the database at vuln.go.dev, or VULNDB=file:///DIR'
	@echo 'make clean   remove bin and .cache'

build:
	$(say) 'building bin/lamina'
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(version)' -o bin/lamina ./cmd/lamina

deb:
	@env -u GOARCH integration/setup packager
	$(say) "building Debian's package"
	packaging/build bin

man:
	go run -ldflags '-X main.version=$(version)' ./cmd/lamina generate bin/man

demo: root
	@integration/demo

test: root
	$(say) 'installing and building what the tests need'
	integration/setup packages tools packager kubernetes debian image promtool
	@$(MAKE) --no-print-directory build
	$(say) 'testing all packages, with the race detector, as root: on this kernel, and beside it in guests, which have one processor'
	go build -race ./...
	@$(MAKE) --no-print-directory -j2 test-here test-guests

# The packages whose tests run in guests, but for package integration's TestThin...; and some others, so that each half takes twenty minutes.
in_guests := dmthin packaging integration/guest integration/peers integration/selinux integration/bench

test-here:
	LAMINA_TEST_ROOT=1 go test -p 1 -race -count=1 -timeout 28m -skip '^TestThin' \
		$$(go list ./... | grep -v $(foreach p,$(in_guests),-e '/lamina/$(p)$$' -e '/lamina/$(p)/'))
	go test -count=1 -tags failpoint ./internal/failpoint ./cmd/lamina-node

# Of package integration alone: a test of this name in another would run in neither.
test-guests:
	LAMINA_TEST_ROOT=1 go test -race -count=1 -timeout 28m -run '^TestThin' ./integration
	LAMINA_TEST_ROOT=1 go test -p 1 -race -count=1 -timeout 28m $(foreach p,$(in_guests),./$(p)/...)
	$(say) "pods by containerd's CRI plugin, and the files for Kubernetes"
	LAMINA_TEST_ROOT=1 go test -C integration/kubernetes -count=1 -timeout 8m ./...

torture: root
	$(say) 'installing and building what the tests need'
	integration/setup packages
	$(say) 'failpoints, storms of kills and power cuts'
	LAMINA_TEST_ROOT=1 LAMINA_TORTURE=1 go test -count=1 -timeout 3h -v -run 'Storm|Failpoint|PowerCut' ./integration

lint:
	$(say) 'building the linter, if it is not there'
	integration/setup lint
	$(say) 'golangci-lint'
	bin/tools/golangci-lint run ./...
	bin/tools/golangci-lint fmt --diff
	for m in containerd kubernetes; do (cd integration/$$m && ../../bin/tools/golangci-lint run --config ../../.golangci.yml ./...) || exit 1; done
	$(say) 'shellcheck'
	bin/tools/shellcheck $$(grep -rlI '^#!/bin/\(ba\)\?sh' --exclude-dir=.git --exclude-dir=bin --exclude-dir=.cache .)
	$(say) 'go vet'
	go vet ./...
	go vet -tags failpoint ./internal/failpoint ./cmd/lamina-node
	go vet -C integration/containerd ./...
	go vet -C integration/kubernetes ./...
	$(say) 'go mod tidy'
	go mod tidy -diff
	set -e; for m in $(modules); do go -C $$m mod tidy -diff; done

# Only the reports go to the standard output: with BENCH='-o json' two documents, one after the other.
bench: root
	@printf '\n== installing and building what the benchmarks need\n' >&2
	@integration/setup packages tools image >&2
	@$(MAKE) --no-print-directory build >&2
	@go build -o bin/bench ./integration/bench
	@go test -c -o bin/dm.test ./dmthin/internal/dm >&2
	@go build -o bin/guest ./integration/guest/cmd/guest
	@printf '\n== the union backend beside overlayfs\n' >&2
	@bin/bench -timeout 8m $(BENCH)
	@printf '\n== the thin backend beside devmapper, in a guest\n' >&2
	@bin/guest -udev -disk 48G -timeout 19m 'bin/bench -backend thin -timeout 18m -requests bin/dm.test $(BENCH) operations quotas images restart prepare'

bench-more: root
	integration/setup packages tools image
	$(say) 'the store, the snapshotter and the backends'
	go test -run '^$$' -bench . -benchmem ./metadata ./overlayaufs ./integration
	$(say) 'usage of the union backend with project quotas, in a guest if need be'
	go test -run '^$$' -bench . -benchtime 10x -timeout 15m ./integration/peers
	$(say) 'commits of containers beside those of containerd, of directories and of volumes'
	LAMINA_BENCH=1 go test -count=1 -timeout 60m -v -run DiffSpeed ./integration

captures: root
	integration/setup packages tools image
	LAMINA_CAPTURES=1 go test -count=1 -timeout 5m -run '^TestCaptures$$' ./integration

guest: root
	@go build -o bin/guest ./integration/guest/cmd/guest && bin/guest '$(CMD)'

# What is found is made smaller for a minute otherwise, in which an input of some blocks of a disk lets nothing else be tried.
FUZZTIME ?= 1m
fuzz:
	@set -e; go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do \
		dir=$$(go list -f '{{.Dir}}' "$$package"); \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing.F).*/\1/p' "$$dir"/*_test.go); do \
			printf '\n== %s of %s\n' "$$target" "$$package"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x "$$package" </dev/null; \
		done; \
	done

VULNDB ?= https://vuln.go.dev
vulncheck:
	$(say) 'govulncheck, with the database $(VULNDB)'
	@case '$(VULNDB)' in \
	http*) curl -fsS -m 20 -o /dev/null '$(VULNDB)/index/db.json' || { echo 'NOT CHECKED: this network does not let the database $(VULNDB) be read; make vulncheck VULNDB=file:///DIR reads a copy' >&2; exit 1; } ;; \
	esac
	@set -e; for m in . $(modules); do echo "== $$m"; go run -C $$m golang.org/x/vuln/cmd/govulncheck@v1.8.0 -db '$(VULNDB)' ./...; done

clean:
	rm -rf bin .cache

root:
	@[ "$$(id -u)" = 0 ] || { echo 'this needs root: it mounts file systems, runs containers and may install packages' >&2; exit 1; }
