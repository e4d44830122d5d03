-- What the writer may do to tables that it does not own. Laid anew by every migration. Advisory lock 7094702 serialises them.

-- Makes the native partitions of a week (168 hours); hypertables make their chunks themselves. Attaching takes a lock that lets readers
-- and writers of other partitions go on, which CREATE TABLE ... PARTITION OF does not.
CREATE OR REPLACE FUNCTION rollmill.ensure_week(week integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = rollmill, pg_temp AS $$
DECLARE
  parent text;
  part text := CASE WHEN week < 0 THEN 'm' || -week ELSE 'w' || week END;
BEGIN
  PERFORM pg_advisory_xact_lock(7094702);
  FOREACH parent IN ARRAY ARRAY['rollups', 'sketches'] LOOP
    IF (SELECT relkind FROM pg_class WHERE oid = ('rollmill.' || parent)::regclass) = 'p'
      AND to_regclass(format('rollmill.%I', parent || '_' || part)) IS NULL THEN
      EXECUTE format('CREATE TABLE rollmill.%I (LIKE rollmill.%I INCLUDING DEFAULTS) WITH (fillfactor = 85)',
        parent || '_' || part, parent);
      EXECUTE format('ALTER TABLE rollmill.%I ATTACH PARTITION rollmill.%I FOR VALUES FROM (%s) TO (%s)',
        parent, parent || '_' || part, week::bigint * 168, (week::bigint + 1) * 168);
    END IF;
  END LOOP;
END $$;

-- Drops the weeks that end at or before an hour. Waits at most 2 s for each, because readers queue behind it. Moves the revisions of the
-- days concerned, so that no cache answers with what is gone. An hour within the last day is refused, whoever asks.
CREATE OR REPLACE FUNCTION rollmill.drop_before(before integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = rollmill, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  doomed record;
  dropped integer := 0;
  timescale text;
  first_day integer;
BEGIN
  IF before > floor(extract(epoch FROM now()) / 3600) - 24 THEN
    RAISE EXCEPTION 'rollups of the last day are never dropped, but hour % was asked for', before;
  END IF;
  PERFORM pg_advisory_xact_lock(7094702);
  -- What is gone begins where the oldest rollup is.
  SELECT floor(min(first_hour) / 24.0) INTO first_day FROM metrics;
  IF (SELECT relkind FROM pg_class WHERE oid = 'rollmill.rollups'::regclass) = 'p' THEN
    FOR doomed IN
      SELECT c.relname, p.relname AS parent FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
      WHERE p.oid IN ('rollmill.rollups'::regclass, 'rollmill.sketches'::regclass)
        AND substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''?(-?\d+)''?\)')::bigint <= before
      ORDER BY p.relname, c.relname
    LOOP
      EXECUTE format('DROP TABLE rollmill.%I', doomed.relname);
      dropped := dropped + 1;
    END LOOP;
  ELSE
    SELECT n.nspname INTO timescale FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb';
    EXECUTE format('SELECT count(*) FROM (SELECT %1$I.drop_chunks(''rollmill.rollups'', older_than => $1)
      UNION ALL SELECT %1$I.drop_chunks(''rollmill.sketches'', older_than => $1)) AS d', timescale) INTO dropped USING before;
  END IF;
  IF dropped > 0 THEN
    UPDATE revisions SET revision = revision + 1 WHERE day >= first_day AND day < ceil(before / 24.0);
    UPDATE metrics m SET first_hour = (SELECT min(hour) FROM rollups r WHERE r.metric_no = m.no),
      last_hour = (SELECT max(hour) FROM rollups r WHERE r.metric_no = m.no) WHERE m.first_hour < before;
  END IF;
  RETURN dropped;
END $$;

-- The chunks that end at or before an hour and are to be compressed, oldest first: those that are not, and those that got late rows since
-- (status 2: out of order, 8: partly). Empty where there is no TimescaleDB, or its licence has no compression.
CREATE OR REPLACE FUNCTION rollmill.compressible(before integer) RETURNS SETOF text LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = rollmill, pg_temp AS $$
DECLARE
  late text := 'false';
BEGIN
  IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
    OR current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
    RETURN;
  END IF;
  IF to_regprocedure('_timescaledb_functions.chunk_status(regclass)') IS NOT NULL THEN
    late := '_timescaledb_functions.chunk_status(format(''%I.%I'', chunk_schema, chunk_name)::regclass) & 10 <> 0';
  END IF;
  RETURN QUERY EXECUTE 'SELECT format(''%I.%I'', chunk_schema, chunk_name) FROM timescaledb_information.chunks
    WHERE hypertable_schema = ''rollmill'' AND hypertable_name IN (''rollups'', ''sketches'') AND range_end_integer <= $1
    AND CASE WHEN is_compressed THEN ' || late || ' ELSE true END ORDER BY range_end_integer, hypertable_name' USING before;
END $$;

-- Compresses one of these chunks, or what late rows have undone of it; false if there is nothing to do any more. A transaction of its own
-- for each chunk keeps queries and flushes of all others going; it waits at most 2 s for those of this one, because they queue behind it.
CREATE OR REPLACE FUNCTION rollmill.compress_chunk(chunk text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = rollmill, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  parent text;
  timescale text;
BEGIN
  IF NOT EXISTS (SELECT FROM rollmill.compressible(2147483647) AS c WHERE c = chunk) THEN
    RETURN false;
  END IF;
  SELECT n.nspname INTO timescale FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'timescaledb';
  SELECT hypertable_name INTO parent FROM timescaledb_information.chunks
    WHERE hypertable_schema = 'rollmill' AND format('%I.%I', chunk_schema, chunk_name) = chunk;
  -- Ordered by hour first: a range of hours is read batch by batch, in its order.
  IF NOT (SELECT compression_enabled FROM timescaledb_information.hypertables
          WHERE hypertable_schema = 'rollmill' AND hypertable_name = parent) THEN
    EXECUTE format('ALTER TABLE rollmill.%I SET (timescaledb.compress, timescaledb.compress_segmentby = ''metric_no'',
      timescaledb.compress_orderby = ''hour, series_no'')', parent);
  END IF;
  EXECUTE format('SELECT %I.compress_chunk(%L::regclass, if_not_compressed => true)', timescale, chunk);
  RETURN true;
END $$;

-- The same for all of them at once, for people; nodes take one transaction for each chunk. How many.
CREATE OR REPLACE FUNCTION rollmill.compress_before(before integer) RETURNS integer LANGUAGE sql SECURITY DEFINER
  SET search_path = rollmill, pg_temp AS
  'SELECT count(*)::integer FROM rollmill.compressible(before) AS c WHERE rollmill.compress_chunk(c)';
