-- Version 6. Generations: sets of rollups of the same records under other rules. Each (tenant, metric, generation) has a metric number of its
-- own, so the tables of rows stay as they are, compressed chunks included. Generation 0 is what ingest makes; every statement about it says so.
ALTER TABLE rollmill.metrics ADD COLUMN generation bigint NOT NULL DEFAULT 0;
ALTER TABLE rollmill.metrics DROP CONSTRAINT metrics_tenant_no_name_key, ADD UNIQUE (tenant_no, name, generation);
CREATE INDEX metrics_by_generation ON rollmill.metrics (generation) WHERE generation > 0;
COMMENT ON COLUMN rollmill.metrics.generation IS 'Which rules made its rows: 0 is what ingest makes. Of others, the span may be wider than the rows.';

-- The writer of a series is (shard, part): 0 is ingest, whose shards share their series; of another generation 1 is live, 2 fills in.
ALTER TABLE rollmill.series ADD COLUMN part smallint NOT NULL DEFAULT 0;
ALTER TABLE rollmill.series DROP CONSTRAINT series_id_key;
CREATE UNIQUE INDEX series_by_id ON rollmill.series (id) WHERE part = 0;
CREATE UNIQUE INDEX series_by_writer ON rollmill.series (metric_no, shard, part, id) WHERE part > 0;
DROP INDEX rollmill.series_by_shard;
CREATE INDEX series_by_shard ON rollmill.series (shard) WHERE part = 0;
COMMENT ON COLUMN rollmill.series.part IS 'Who writes its rows, besides the shard: 0 ingest; of another generation 1 live, 2 from the archive.';

-- An older release that still runs does not move set_next, so it cannot flush a shard that has adopted a set: its batches lack what the set says.
ALTER TABLE rollmill.shards ADD COLUMN set_version bigint NOT NULL DEFAULT 0, ADD COLUMN set_next bigint,
  ADD CONSTRAINT set_is_known CHECK (set_version = 0 OR set_next IS NOT DISTINCT FROM next);
COMMENT ON COLUMN rollmill.shards.set_version IS 'Which set of generations the shard writes; 0 if there never was one.';

-- One row, so that a change of what is served is one small write, however many rows there are.
CREATE TABLE rollmill.generation_book (one boolean PRIMARY KEY DEFAULT true CHECK (one), version bigint NOT NULL, document text NOT NULL)
  WITH (fillfactor = 50);
INSERT INTO rollmill.generation_book (version, document) VALUES (0, '');
COMMENT ON TABLE rollmill.generation_book IS 'Which generations are written and which are served, as JSON; version 0 is a store that never had one.';

CREATE TABLE rollmill.generation_fills (generation bigint NOT NULL, shard integer NOT NULL, log uuid NOT NULL, cut bigint NOT NULL,
  cursor bigint NOT NULL, PRIMARY KEY (generation, shard)) WITH (fillfactor = 50);
COMMENT ON TABLE rollmill.generation_fills IS 'Archived records of the shard below cut go into the generation; those below cursor are in.';

CREATE TABLE rollmill.generation_dropped (generation bigint NOT NULL, tenant text COLLATE "C" NOT NULL, metric text COLLATE "C" NOT NULL,
  day integer NOT NULL, shard integer NOT NULL, part smallint NOT NULL, events bigint NOT NULL,
  PRIMARY KEY (generation, tenant, metric, day, shard, part)) WITH (fillfactor = 70);
COMMENT ON TABLE rollmill.generation_dropped IS 'Events that the rules of a generation dropped, by writer, metric and UTC day.';

CREATE TABLE rollmill.generation_rules (generation bigint NOT NULL, shard integer NOT NULL, part smallint NOT NULL, rule integer NOT NULL,
  outcome text COLLATE "C" NOT NULL, events bigint NOT NULL, PRIMARY KEY (generation, shard, part, rule, outcome)) WITH (fillfactor = 70);
COMMENT ON TABLE rollmill.generation_rules IS 'Events that each rule (from 0) dropped, changed, or left as they were and why, by writer.';

CREATE TABLE rollmill.generation_audit (no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, generation bigint NOT NULL,
  tenant text COLLATE "C" NOT NULL, action text NOT NULL, at bigint NOT NULL, by text NOT NULL, note text NOT NULL);
CREATE INDEX generation_audit_by_tenant ON rollmill.generation_audit (tenant, no);
COMMENT ON TABLE rollmill.generation_audit IS 'Who started, applied, undid or cancelled a generation, and when (milliseconds since the Unix epoch).';

-- Rows below are dropped by age; what is filled in leaves them out.
CREATE TABLE rollmill.retention_floor (one boolean PRIMARY KEY DEFAULT true CHECK (one), hour integer NOT NULL);
COMMENT ON TABLE rollmill.retention_floor IS 'Below this hour rollups are dropped by age.';

-- What people decided stays until the record expires: a fill that comes to it later counts what was released. A released row is discarded, too,
-- so that an older release that still runs does not release it again.
ALTER TABLE rollmill.quarantine ADD COLUMN released boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN rollmill.quarantine.released IS 'Whether the event was released, and so is counted; it stands in discarded as well.';
