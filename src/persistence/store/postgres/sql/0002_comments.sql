-- Version 2. What the tables are, for people who look at them; the views in rollmill_views are easier to read.
COMMENT ON TABLE rollmill.tenants IS 'Tenants by number.';
COMMENT ON TABLE rollmill.metrics IS 'Metrics of a tenant by number, with the number of their series and the span of their windows.';
COMMENT ON TABLE rollmill.series IS 'Series by number: id is the hash of key, which holds tenant, metric and labels (see rollmill_views.labels).';
COMMENT ON TABLE rollmill.label_pairs IS 'Label names and values of a metric.';
COMMENT ON TABLE rollmill.series_labels IS 'Which series carry which label.';
COMMENT ON TABLE rollmill.rollups IS 'Figures of a series in a window of one hour; see rollmill_views.hourly.';
COMMENT ON COLUMN rollmill.rollups.hour IS 'Hours since 1970-01-01T00:00Z.';
COMMENT ON TABLE rollmill.sketches IS 'Sketches of the same rows: distinct users and quantiles, readable by Rollmill alone.';
COMMENT ON TABLE rollmill.revisions IS 'Moved by every write to a metric and day; caches compare it.';
COMMENT ON TABLE rollmill.shards IS 'Checkpoints: everything below next is in the rollups. owner is for people.';
COMMENT ON TABLE rollmill.suspects IS 'Events that were being applied when their shard died.';
COMMENT ON TABLE rollmill.dedup IS 'Hashes of the event ids of recent flushes.';
COMMENT ON TABLE rollmill.accounting IS 'What became of the events, by tenant and hour of receipt.';
COMMENT ON TABLE rollmill.quarantine IS 'Events that were set aside, with their records.';
COMMENT ON TABLE rollmill.manifest IS 'Objects of the archive.';
COMMENT ON TABLE rollmill.archive_floors IS 'Where the archive begins, for shards of which something expired.';
