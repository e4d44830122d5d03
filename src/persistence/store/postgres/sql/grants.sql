-- The least that each role needs; roles that do not exist get nothing. Laid anew by every migration.
REVOKE ALL ON FUNCTION rollmill.ensure_week(integer), rollmill.drop_before(integer), rollmill.compress_before(integer),
  rollmill.compressible(integer), rollmill.compress_chunk(text), rollmill.delete_generation_rows(integer, integer, integer, integer),
  rollmill.delete_generation_series(integer, bigint[], bigint[], bigint[]) FROM PUBLIC;
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rollmill_writer') THEN
    GRANT USAGE ON SCHEMA rollmill TO rollmill_writer;
    GRANT SELECT ON ALL TABLES IN SCHEMA rollmill TO rollmill_writer;
    GRANT INSERT ON rollmill.tenants, rollmill.metrics, rollmill.series, rollmill.label_pairs, rollmill.series_labels, rollmill.rollups,
      rollmill.sketches, rollmill.revisions, rollmill.shards, rollmill.suspects, rollmill.dedup, rollmill.dedup_rules,
      rollmill.outcome_notes, rollmill.accounting, rollmill.quarantine, rollmill.manifest, rollmill.archive_floors, rollmill.expiry TO rollmill_writer;
    GRANT UPDATE ON rollmill.metrics, rollmill.rollups, rollmill.sketches, rollmill.revisions, rollmill.shards, rollmill.suspects,
      rollmill.accounting, rollmill.quarantine, rollmill.archive_floors, rollmill.expiry TO rollmill_writer;
    GRANT UPDATE (tier) ON rollmill.manifest TO rollmill_writer;
    GRANT DELETE ON rollmill.suspects, rollmill.dedup, rollmill.dedup_rules, rollmill.outcome_notes, rollmill.quarantine,
      rollmill.manifest TO rollmill_writer;
    GRANT INSERT, UPDATE, DELETE ON rollmill.generation_fills, rollmill.generation_dropped, rollmill.generation_rules TO rollmill_writer;
    GRANT INSERT, UPDATE, DELETE ON rollmill.boards TO rollmill_writer;
    GRANT INSERT ON rollmill.generation_audit TO rollmill_writer;
    GRANT UPDATE ON rollmill.generation_book TO rollmill_writer;
    GRANT EXECUTE ON FUNCTION rollmill.ensure_week(integer), rollmill.drop_before(integer), rollmill.compress_before(integer),
      rollmill.compressible(integer), rollmill.compress_chunk(text), rollmill.delete_generation_rows(integer, integer, integer, integer),
      rollmill.delete_generation_series(integer, bigint[], bigint[], bigint[]) TO rollmill_writer;
  END IF;
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rollmill_reader') THEN
    GRANT USAGE ON SCHEMA rollmill TO rollmill_reader;
    GRANT SELECT ON ALL TABLES IN SCHEMA rollmill TO rollmill_reader;
    IF has_schema_privilege(to_regnamespace('rollmill_views'), 'CREATE') THEN
      GRANT USAGE ON SCHEMA rollmill_views TO rollmill_reader;
    END IF;
  END IF;
END $$;
