-- What people read with SQL, Grafana for one: names instead of numbers, times instead of hours, labels as jsonb. In a schema of its own, so that
-- a role can be given this and nothing else: GRANT USAGE ON SCHEMA rollmill_views TO somebody. Laid anew by every migration.

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

-- Every rollup: one row for a series and a window of an hour. hour counts hours since 1970, UTC; a condition on it, and no other, reads the
-- weeks concerned alone.
CREATE OR REPLACE VIEW rollmill_views.hourly AS
  SELECT to_timestamp(r.hour * 3600.0) AS "time", t.name::text AS tenant, m.name::text AS metric, rollmill_views.labels(s.key) AS labels,
    r.count, r.value_count, r.sum, round(r.sum / nullif(r.value_count, 0), 9) AS avg, r.min, r.max, r.hour
  FROM rollmill.rollups r JOIN rollmill.series s ON s.no = r.series_no JOIN rollmill.metrics m ON m.no = r.metric_no
    JOIN rollmill.tenants t ON t.no = m.tenant_no;

-- The windows that begin in a range of time; no other week is touched.
CREATE OR REPLACE FUNCTION rollmill_views.rollups("from" timestamptz, "to" timestamptz)
  RETURNS TABLE ("time" timestamptz, tenant text, metric text, labels jsonb, count bigint, value_count bigint, sum numeric, avg numeric,
    min numeric, max numeric) LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT h."time", h.tenant, h.metric, h.labels, h.count, h.value_count, h.sum, h.avg, h.min, h.max FROM rollmill_views.hourly h
  WHERE h.hour >= ceil(extract(epoch FROM $1) / 3600)::integer AND h.hour < ceil(extract(epoch FROM $2) / 3600)::integer
$$;

GRANT SELECT ON rollmill_views.hourly TO PUBLIC;
