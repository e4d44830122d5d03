# Two commands cover everyday use: `make run` and `make test`. `make verify` is the gate that CI
# runs.
.PHONY: run test verify build bench cluster clean

CARGO ?= cargo
DATA ?= ./data
FLIGHTS := $(firstword $(wildcard ../shared/data/nycflights13/events_by_arrival.csv.gz) data-sets/events_by_arrival.csv.gz)
# One set of features everywhere, so that nothing is compiled twice. The tests also cover what a
# build without these features refuses.
BUILD := --locked --features kafka-tls

run: build $(FLIGHTS)
	scripts/demo "$(DATA)" "$(FLIGHTS)"

build:
	$(CARGO) build --release --locked

# Everything the tests need that Rust does not bring.
.PHONY: tools
tools:
	scripts/install-test-tools

test: tools $(FLIGHTS)
	ROLLMILL_FLIGHTS="$(abspath $(FLIGHTS))" $(CARGO) test $(BUILD)

# Cheap checks first. `fmt-check` and `lint` need no servers, but `lint` needs OpenSSL's headers,
# which `tools` installs.
verify: fmt-check tools lint doc deps test

# Unit tests and tidiness: everything that needs no server and takes less than a minute once built.
.PHONY: test-fast fmt fmt-check lint doc deps
test-fast:
	$(CARGO) test $(BUILD) --lib --test tidy -- --skip persistence::log::kafka --skip persistence::store::postgres --skip persistence::cache::redis

fmt:
	$(CARGO) fmt

fmt-check:
	$(CARGO) fmt --check

# Every lint in Cargo.toml and clippy.toml is an error here; in an editor it is a warning.
lint:
	$(CARGO) clippy $(BUILD) --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc $(BUILD) --no-deps --document-private-items

# Licences, duplicates and sources by deny.toml; known vulnerabilities too if cargo-deny is
# installed (`cargo install --locked cargo-deny`).
deps:
	$(CARGO) test $(BUILD) --test tidy dependencies
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; else echo "cargo-deny is not installed: advisories were not looked at"; fi

data-sets/events_by_arrival.csv.gz:
	scripts/fetch-flights data-sets

# The whole cluster on this machine: Kafka, PostgreSQL, S3, Redis, nginx and three nodes. BROKERS=3
# for three brokers.
cluster: build tools $(FLIGHTS)
	$(CARGO) build --release --locked --example s3-server
	scripts/cluster "$(FLIGHTS)" $(BROKERS)

bench: build
	$(CARGO) bench --locked

clean:
	$(CARGO) clean
