-- What people read with SQL, Grafana for one: names instead of numbers, times instead of hours, labels as jsonb. In a schema of its own, so that
-- a role can be given this and nothing else: GRANT USAGE ON SCHEMA rollmill_views TO somebody. Laid anew by every migration. Names, columns and
-- their meaning are stable (docs/how-to/query-with-sql.md); columns may be added behind the last one.

-- Labels of a series, from its key: strings, each behind its length (7 bits a byte, least first): tenant, metric, then names and values.
CREATE OR REPLACE FUNCTION rollmill_views.labels(key bytea) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 1000 AS $$
DECLARE
  strings text[];
  at integer := 0;
  size integer;
  shift integer;
  byte integer;
BEGIN
  WHILE at < length(key) LOOP
    size := 0;
    shift := 0;
    LOOP
      byte := get_byte(key, at);
      at := at + 1;
      size := size | ((byte & 127) << shift);
      shift := shift + 7;
      EXIT WHEN byte < 128;
    END LOOP;
    strings := strings || convert_from(substring(key FROM at + 1 FOR size), 'UTF8');
    at := at + size;
  END LOOP;
  RETURN coalesce(jsonb_object(nullif(strings[3:], '{}')), '{}');
END $$;

-- The hours [from_hour, to_hour) in which the rows of a metric number are what is served: all of generation 0, except where a replay is served.
-- From the document that the API reads, so both switch in the same moment. Days are since 1970, an open end is null.
CREATE OR REPLACE VIEW rollmill_views.served AS
  WITH pieces AS (
    SELECT t.key AS tenant, m.key AS metric, (p.value->>'generation')::bigint AS generation,
      (p.value->'days'->>0)::bigint * 24 AS from_hour, coalesce((p.value->'days'->>1)::bigint * 24, 2147483648) AS to_hour
    FROM rollmill.generation_book b, jsonb_each(nullif(b.document, '')::jsonb->'pointers') t, jsonb_each(t.value) m,
      jsonb_array_elements(m.value) p
  ), cut AS (
    SELECT tenant, metric, generation, from_hour, to_hour FROM pieces
    UNION ALL
    SELECT tenant, metric, 0, coalesce(lag(to_hour) OVER (PARTITION BY tenant, metric ORDER BY from_hour), -2147483648), from_hour FROM pieces
    UNION ALL
    SELECT tenant, metric, 0, max(to_hour), 2147483648 FROM pieces GROUP BY tenant, metric
  )
  SELECT m.no AS metric_no, t.name::text AS tenant, m.name::text AS metric, m.generation, coalesce(c.from_hour, -2147483648) AS from_hour,
    coalesce(c.to_hour, 2147483648) AS to_hour
  FROM rollmill.metrics m JOIN rollmill.tenants t ON t.no = m.tenant_no
    LEFT JOIN cut c ON c.tenant = t.name AND c.metric = m.name AND c.generation = m.generation
  WHERE m.generation = 0 OR c.generation IS NOT NULL;

-- Every rollup that is served: one row for a series and a window of an hour. hour counts hours since 1970, UTC; a condition on it, and no other,
-- reads the weeks concerned alone. generation is the number of the replay that made the row, or 0. Several writers may have made parts of a row of
-- a replay. Where no event has a value, there is no sum, as in the API.
CREATE OR REPLACE VIEW rollmill_views.hourly AS
  SELECT to_timestamp(r.hour * 3600.0) AS "time", v.tenant, v.metric, rollmill_views.labels(s.key) AS labels,
    r.count, r.value_count, CASE WHEN r.value_count > 0 THEN r.sum END AS sum, round(r.sum / nullif(r.value_count, 0), 9) AS avg, r.min, r.max, r.hour, v.generation
  FROM rollmill_views.served v JOIN rollmill.rollups r ON r.metric_no = v.metric_no AND r.hour >= v.from_hour AND r.hour < v.to_hour
    JOIN rollmill.series s ON s.no = r.series_no
  WHERE v.generation = 0
  UNION ALL
  SELECT to_timestamp(p.hour * 3600.0), p.tenant, p.metric, rollmill_views.labels(p.key), p.count, p.value_count, CASE WHEN p.value_count > 0 THEN p.sum END,
    round(p.sum / nullif(p.value_count, 0), 9), p.min, p.max, p.hour, p.generation
  FROM (
    SELECT v.tenant, v.metric, v.generation, r.hour, s.key, sum(r.count)::bigint AS count, sum(r.value_count)::bigint AS value_count,
      sum(r.sum) AS sum, min(r.min) AS min, max(r.max) AS max
    FROM rollmill_views.served v JOIN rollmill.rollups r ON r.metric_no = v.metric_no AND r.hour >= v.from_hour AND r.hour < v.to_hour
      JOIN rollmill.series s ON s.no = r.series_no
    -- Asked once, before anything is read: most stores have no replay.
    WHERE v.generation > 0 AND (SELECT min(g.generation) FROM rollmill.metrics g WHERE g.generation > 0) IS NOT NULL
    GROUP BY v.tenant, v.metric, v.generation, r.hour, s.key
  ) p;

-- The windows that begin in a range of time; no other week is touched.
CREATE OR REPLACE FUNCTION rollmill_views.rollups("from" timestamptz, "to" timestamptz)
  RETURNS TABLE ("time" timestamptz, tenant text, metric text, labels jsonb, count bigint, value_count bigint, sum numeric, avg numeric,
    min numeric, max numeric) LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT h."time", h.tenant, h.metric, h.labels, h.count, h.value_count, h.sum, h.avg, h.min, h.max FROM rollmill_views.hourly h
  WHERE h.hour >= ceil(extract(epoch FROM $1) / 3600)::integer AND h.hour < ceil(extract(epoch FROM $2) / 3600)::integer
$$;

-- The catalogue as GET /v1/metrics has it: number of series, first and last window. Where a replay is served, windows are united with those
-- ingested, and the larger number of series counts. Each writer of a replay has numbered its series.
CREATE OR REPLACE VIEW rollmill_views.metrics AS
  SELECT v.tenant, v.metric, max(CASE WHEN m.generation = 0 THEN m.series_count
      ELSE (SELECT count(DISTINCT s.id) FROM rollmill.series s WHERE s.metric_no = m.no) END) AS series, to_timestamp(min(m.first_hour) * 3600.0) AS first,
    to_timestamp(max(m.last_hour) * 3600.0) AS last
  FROM (SELECT DISTINCT tenant, metric, metric_no FROM rollmill_views.served) v JOIN rollmill.metrics m ON m.no = v.metric_no
  GROUP BY v.tenant, v.metric;

-- Every series of what is served.
CREATE OR REPLACE VIEW rollmill_views.series AS
  SELECT k.tenant, k.metric, rollmill_views.labels(k.key) AS labels
  FROM (SELECT DISTINCT v.tenant, v.metric, s.key FROM rollmill_views.served v JOIN rollmill.series s ON s.metric_no = v.metric_no) k;

-- Labels and their values by metric.
CREATE OR REPLACE VIEW rollmill_views.label_values AS
  SELECT DISTINCT v.tenant, v.metric, p.name::text AS label, p.value::text AS value
  FROM rollmill_views.served v JOIN rollmill.label_pairs p ON p.metric_no = v.metric_no;

-- What became of the events of a tenant, by hour of receipt, as far as it is in the store.
CREATE OR REPLACE VIEW rollmill_views.accounting AS
  SELECT to_timestamp(a.hour * 3600.0) AS "time", a.tenant::text AS tenant, a.aggregated, a.deduplicated, a.quarantined, a.hour
  FROM rollmill.accounting a;

GRANT SELECT ON rollmill_views.hourly, rollmill_views.metrics, rollmill_views.series, rollmill_views.label_values, rollmill_views.accounting TO PUBLIC;
