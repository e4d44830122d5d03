# Two commands do everything: `make run` and `make test`.
.PHONY: run test build bench cluster clean

CARGO ?= cargo
DATA ?= ./data
FLIGHTS := $(firstword $(wildcard ../shared/data/nycflights13/events_by_arrival.csv.gz) data-sets/events_by_arrival.csv.gz)

run: build $(FLIGHTS)
	scripts/demo "$(DATA)" "$(FLIGHTS)"

build:
	$(CARGO) build --release --locked

# Everything a test needs that Rust does not bring along.
.PHONY: tools
tools:
	scripts/install-test-tools

# With kafka-tls, so that one build tests everything; what a build without it refuses is tested in it too.
test: tools $(FLIGHTS)
	ROLLMILL_FLIGHTS="$(abspath $(FLIGHTS))" $(CARGO) test --locked --features kafka-tls

data-sets/events_by_arrival.csv.gz:
	scripts/fetch-flights data-sets

# The whole cluster on this machine: Kafka, PostgreSQL, S3, Redis, nginx and three nodes. BROKERS=3 for three brokers.
cluster: build tools $(FLIGHTS)
	$(CARGO) build --release --locked --example s3-server
	scripts/cluster "$(FLIGHTS)" $(BROKERS)

bench: build
	$(CARGO) bench --locked

clean:
	$(CARGO) clean
