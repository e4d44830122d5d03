-- Version 3. The rules of de-duplication, each from the offset on at which it begins to hold.
CREATE TABLE rollmill.dedup_rules (shard integer NOT NULL, from_offset bigint NOT NULL, horizon_ms bigint NOT NULL, max_ids bigint NOT NULL,
  PRIMARY KEY (shard, from_offset));
COMMENT ON TABLE rollmill.dedup_rules IS 'Rules of de-duplication of a shard, each from the offset of the first record that it decides.';
