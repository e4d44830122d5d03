-- Version 5. What ingest decided about events that it did not count, for the archive: one row for a flush that had any, until the object that
-- says it of every row is in the manifest. noted_from and noted_to are the records whose flushes have noted it; a flush of an older release
-- notes nothing and leaves a gap, after which a flush begins anew.
ALTER TABLE rollmill.shards ADD COLUMN noted_from bigint, ADD COLUMN noted_to bigint;
CREATE TABLE rollmill.outcome_notes (shard integer NOT NULL, from_offset bigint NOT NULL, to_offset bigint NOT NULL, events bytea NOT NULL,
  PRIMARY KEY (shard, from_offset));
COMMENT ON TABLE rollmill.outcome_notes IS 'Duplicates and quarantined events of flushes that are not archived yet.';
