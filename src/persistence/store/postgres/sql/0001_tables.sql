-- Version 1. Series and metrics are numbered, so that keys are small; a metric's number belongs to one tenant, so every key of rollups
-- begins with the tenant. Text compares by bytes (COLLATE "C"), as it does everywhere else in Rollmill. Hours are whole hours since the
-- Unix epoch, UTC: the same number as in the code, half the size of a timestamp, and both hypertables and native ranges take it.
-- Unsigned 64-bit offsets, epochs and nonces are stored as the bigint of the same bits.
CREATE TABLE rollmill.tenants (no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "C" NOT NULL UNIQUE);

CREATE TABLE rollmill.metrics (no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_no integer NOT NULL,
  name text COLLATE "C" NOT NULL, series_count bigint NOT NULL DEFAULT 0, first_hour integer, last_hour integer,
  UNIQUE (tenant_no, name)) WITH (fillfactor = 70);

CREATE TABLE rollmill.series (no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, metric_no integer NOT NULL, shard integer NOT NULL,
  admitted_offset bigint NOT NULL, id uuid NOT NULL UNIQUE, key bytea NOT NULL);
CREATE INDEX series_by_metric ON rollmill.series (metric_no);
CREATE INDEX series_by_shard ON rollmill.series (shard);

CREATE TABLE rollmill.label_pairs (no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, metric_no integer NOT NULL,
  name text COLLATE "C" NOT NULL, value text COLLATE "C" NOT NULL, UNIQUE (metric_no, name, value));
CREATE TABLE rollmill.series_labels (pair_no bigint NOT NULL, series_no bigint NOT NULL, PRIMARY KEY (pair_no, series_no));

-- Sums, least and largest values are numeric: exact, added by the server, short for short numbers, and readable for people.
CREATE TABLE rollmill.rollups (metric_no integer NOT NULL, hour integer NOT NULL, series_no bigint NOT NULL, count bigint NOT NULL,
  value_count bigint NOT NULL, sum numeric NOT NULL, min numeric, max numeric, PRIMARY KEY (metric_no, hour, series_no)) /*PARTITIONED*/;

-- Sketches lie apart, so that queries of figures stay cheap. Their bytes are merged by the code that made them.
CREATE TABLE rollmill.sketches (metric_no integer NOT NULL, hour integer NOT NULL, series_no bigint NOT NULL,
  distinct_users bytea NOT NULL, quantiles bytea NOT NULL, PRIMARY KEY (metric_no, hour, series_no)) /*PARTITIONED*/;

CREATE TABLE rollmill.revisions (metric_no integer NOT NULL, day integer NOT NULL, revision bigint NOT NULL,
  PRIMARY KEY (metric_no, day)) WITH (fillfactor = 70);

-- The owner's backend stands here for people: takeover finds the one that holds the row, see docs/adr/0008.
CREATE TABLE rollmill.shards (shard integer PRIMARY KEY, log uuid NOT NULL, next bigint NOT NULL, archived bigint NOT NULL,
  epoch bigint NOT NULL, nonce bigint NOT NULL, attempts bigint NOT NULL, marked_offset bigint, marked_index bigint,
  owner text NOT NULL, owner_pid integer NOT NULL, owner_started timestamptz NOT NULL) WITH (fillfactor = 50);
CREATE TABLE rollmill.suspects (shard integer NOT NULL, "offset" bigint NOT NULL, idx bigint NOT NULL, deaths bigint NOT NULL,
  PRIMARY KEY (shard, "offset", idx));

CREATE TABLE rollmill.dedup (shard integer NOT NULL, from_offset bigint NOT NULL, to_offset bigint NOT NULL,
  first_appended bigint NOT NULL, last_appended bigint NOT NULL, block bytea NOT NULL, PRIMARY KEY (shard, from_offset));
-- Hashes do not compress: not trying saves the time.
ALTER TABLE rollmill.dedup ALTER COLUMN block SET STORAGE EXTERNAL;

CREATE TABLE rollmill.accounting (tenant text COLLATE "C" NOT NULL, hour integer NOT NULL, aggregated bigint NOT NULL,
  deduplicated bigint NOT NULL, quarantined bigint NOT NULL, PRIMARY KEY (tenant, hour)) WITH (fillfactor = 70);

CREATE TABLE rollmill.quarantine (shard integer NOT NULL, "offset" bigint NOT NULL, idx bigint NOT NULL,
  tenant text COLLATE "C" NOT NULL, appended bigint NOT NULL, reason text NOT NULL, discarded boolean NOT NULL, record bytea NOT NULL,
  PRIMARY KEY (shard, "offset", idx));

CREATE TABLE rollmill.manifest (shard integer NOT NULL, from_offset bigint NOT NULL, to_offset bigint NOT NULL, log uuid NOT NULL,
  epoch bigint NOT NULL, nonce bigint NOT NULL, path text NOT NULL, first_appended bigint NOT NULL, last_appended bigint NOT NULL,
  windows bytea NOT NULL, rows bigint NOT NULL, raw_bytes bigint NOT NULL, bytes bigint NOT NULL, crc32c bigint NOT NULL,
  tier smallint NOT NULL, PRIMARY KEY (shard, from_offset));
CREATE TABLE rollmill.archive_floors (shard integer PRIMARY KEY, "offset" bigint NOT NULL, appended bigint NOT NULL,
  hour integer NOT NULL);
