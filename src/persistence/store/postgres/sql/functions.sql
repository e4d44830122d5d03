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

-- Drops the weeks that end at or before an hour, of all generations. Waits at most 2 s for each, because readers queue behind it. Moves the
-- revisions of the days concerned, so that no cache answers with what is gone. Notes where rollups begin, for what is filled in later. An hour within the last day is refused, whoever asks.
CREATE OR REPLACE FUNCTION rollmill.drop_before(before integer) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = rollmill, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  doomed record;
  dropped integer := 0;
  timescale text;
  first_day integer;
  kept integer := floor(before / 168.0)::integer * 168;
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
      last_hour = (SELECT max(hour) FROM rollups r WHERE r.metric_no = m.no) WHERE m.first_hour < before AND m.generation = 0;
    -- The span of another generation only has to hold its rows: a look-up would miss those that are being filled in.
    UPDATE metrics SET first_hour = CASE WHEN last_hour >= kept THEN kept END, last_hour = CASE WHEN last_hour >= kept THEN last_hour END
      WHERE first_hour < kept AND generation > 0;
  END IF;
  INSERT INTO retention_floor AS f (hour) VALUES (kept) ON CONFLICT (one) DO UPDATE SET hour = excluded.hour WHERE f.hour < excluded.hour;
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

-- Deletes at most so many rows of a generation in the hours [from_hour, to_hour) of a metric, with their sketches, oldest first; once there
-- are none, the revisions of those days, as rows like the others. Returns how many; 0 of a metric that another node has deleted meanwhile.
-- Every statement names the hours of one week, so that no other is planned, locked or unpacked. Never touches generation 0, whoever asks.
CREATE OR REPLACE FUNCTION rollmill.delete_generation_rows(metric integer, from_hour integer, to_hour integer, most integer)
  RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = rollmill, pg_temp AS $$
DECLARE
  -- Bounds the locks of a transaction: each week is four relations and more.
  weeks integer := 13;
  deleted integer := 0;
  part integer;
  first integer;
  final integer;
  until_hour integer;
  until_series bigint;
BEGIN
  SELECT greatest(from_hour, m.first_hour), CASE WHEN m.first_hour IS NOT NULL THEN least(to_hour - 1, m.last_hour) END
    INTO first, final FROM metrics m WHERE m.no = metric AND m.generation > 0;
  IF NOT FOUND THEN
    PERFORM FROM metrics m WHERE m.no = metric;
    IF FOUND THEN
      RAISE EXCEPTION 'metric % is of generation 0, whose rows no node deletes', metric;
    END IF;
    RETURN 0;
  END IF;
  WHILE deleted < most AND weeks > 0 LOOP
    EXECUTE 'SELECT hour FROM rollups WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 ORDER BY hour, series_no LIMIT 1'
      INTO first USING metric, first, final;
    EXIT WHEN first IS NULL;
    -- The last of the rows to delete, if they do not end with the week.
    EXECUTE 'SELECT hour, series_no FROM rollups WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 ORDER BY hour, series_no OFFSET $4 LIMIT 1'
      INTO until_hour, until_series USING metric, first, least(final, floor(first / 168.0)::integer * 168 + 167), most - deleted - 1;
    until_hour := coalesce(until_hour, least(final, floor(first / 168.0)::integer * 168 + 167));
    until_series := coalesce(until_series, 9223372036854775807);
    EXECUTE 'DELETE FROM rollups WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 AND (hour < $3 OR series_no <= $4)'
      USING metric, first, until_hour, until_series;
    GET DIAGNOSTICS part = ROW_COUNT;
    EXECUTE 'DELETE FROM sketches WHERE metric_no = $1 AND hour >= $2 AND hour <= $3 AND (hour < $3 OR series_no <= $4)'
      USING metric, first, until_hour, until_series;
    deleted := deleted + part;
    weeks := weeks - 1;
  END LOOP;
  IF first IS NULL AND deleted < most THEN
    DELETE FROM revisions WHERE metric_no = metric AND day IN (SELECT r.day FROM revisions r WHERE r.metric_no = metric
      AND r.day >= floor(from_hour / 24.0) AND r.day < ceil(to_hour / 24.0) LIMIT most - deleted);
    GET DIAGNOSTICS part = ROW_COUNT;
    deleted := deleted + part;
  END IF;
  RETURN deleted;
END $$;

-- Deletes series of a generation that has no rows of the metric any more, with their labels: pair_nos and labelled are columns of
-- series_labels. Once it has no series either, the metric goes. Does nothing if another node has deleted it meanwhile. Never touches
-- generation 0, whoever asks.
CREATE OR REPLACE FUNCTION rollmill.delete_generation_series(metric integer, series_nos bigint[], pair_nos bigint[], labelled bigint[])
  RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = rollmill, pg_temp AS $$
DECLARE
  gone bigint;
BEGIN
  PERFORM FROM metrics m WHERE m.no = metric AND m.generation > 0 FOR UPDATE;
  IF NOT FOUND THEN
    PERFORM FROM metrics m WHERE m.no = metric;
    IF FOUND THEN
      RAISE EXCEPTION 'metric % is of generation 0, whose series no node deletes', metric;
    END IF;
    RETURN;
  END IF;
  DELETE FROM series_labels l USING unnest(pair_nos, labelled) AS w (pair_no, series_no), label_pairs p
    WHERE l.pair_no = w.pair_no AND l.series_no = w.series_no AND p.no = w.pair_no AND p.metric_no = metric;
  DELETE FROM label_pairs p WHERE p.no = ANY (pair_nos) AND p.metric_no = metric
    AND NOT EXISTS (SELECT FROM series_labels l WHERE l.pair_no = p.no);
  DELETE FROM series s WHERE s.no = ANY (series_nos) AND s.metric_no = metric;
  GET DIAGNOSTICS gone = ROW_COUNT;
  UPDATE metrics SET series_count = series_count - gone WHERE no = metric;
  IF NOT EXISTS (SELECT FROM series s WHERE s.metric_no = metric) THEN
    DELETE FROM revisions WHERE metric_no = metric;
    DELETE FROM metrics WHERE no = metric;
  END IF;
END $$;
