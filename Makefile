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

build: web
	$(CARGO) build --release --locked

# The dashboard, which the server embeds. Without Node there is the plain page instead.
.PHONY: web test-web
web:
	scripts/build-web

# In a real browser, against real servers.
test-web: tools web $(FLIGHTS)
	# With the example, the server has the features that it has in tests: nothing is compiled twice.
	$(CARGO) build $(BUILD) --bin rollmill --example s3-server
	scripts/test-web "$${CARGO_TARGET_DIR:-target}/debug/rollmill" "$(FLIGHTS)"

# Everything the tests need that Rust does not bring.
.PHONY: tools
tools:
	scripts/install-test-tools

test: tools web test-web $(FLIGHTS)
	ROLLMILL_FLIGHTS="$(abspath $(FLIGHTS))" $(CARGO) test $(BUILD)

# Cheap checks first. `fmt-check` and `lint` need no servers, but `lint` needs OpenSSL's headers,
# which `tools` installs. The dashboard comes before the first build, or all would be built again.
verify: fmt-check tools web lint doc deps test

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
