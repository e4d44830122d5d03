-- Version 3. Two times: the append time, which is for the machine and never decreases, and the received time, which is for people. What was
-- written before has one time, which is both; an older release that still runs writes none. The column "appended" of the quarantine keeps
-- its name; it has the received time, which was the same until now. Times are milliseconds since the Unix epoch.
ALTER TABLE rollmill.shards ADD COLUMN appended bigint;
ALTER TABLE rollmill.manifest ADD COLUMN first_received bigint, ADD COLUMN last_received bigint;
-- What is noted before anything expires, of each shard, and of the weeks of rollups (shard -1); how often a person has said yes.
CREATE TABLE rollmill.expiry (shard integer PRIMARY KEY, note text NOT NULL, said bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
COMMENT ON TABLE rollmill.expiry IS 'What is noted before anything expires, of each shard, and of the weeks (shard -1).';
