-- Where no event has a value, there is no sum, as in the API.
-- CROSS JOIN fixes the order of the tables: a metric, its hours, then the series of each row by number.
SELECT TIME(r.hour) AS time, v.tenant AS tenant, v.metric AS metric, LABELS(s.key) AS labels, r.count AS count, r.value_count AS value_count,
  CASE WHEN r.value_count > 0 THEN NUMBER(r.sum) END AS sum, NUMBER(r.sum) / nullif(r.value_count, 0) AS avg, NUMBER(r.min) AS min, NUMBER(r.max) AS max, r.hour AS hour,
  v.generation AS generation
FROM rollmill_served v CROSS JOIN rollups r ON r.metric_no = v.metric_no AND r.hour >= v.from_hour AND r.hour < v.to_hour
  CROSS JOIN series s ON s.no = r.series_no
WHERE v.generation = 0
UNION ALL
-- Several writers may have made parts of a row of a replay.
SELECT TIME(p.hour), p.tenant, p.metric, p.labels, p.count, p.value_count, CASE WHEN p.value_count > 0 THEN p.sum END, p.sum / nullif(p.value_count, 0), p.min, p.max, p.hour,
  p.generation
FROM (
  SELECT v.tenant AS tenant, v.metric AS metric, v.generation AS generation, r.hour AS hour, LABELS(s.key) AS labels, sum(r.count) AS count,
    sum(r.value_count) AS value_count, sum(NUMBER(r.sum)) AS sum, min(NUMBER(r.min)) AS min, max(NUMBER(r.max)) AS max
  FROM rollmill_served v CROSS JOIN rollups r ON r.metric_no = v.metric_no AND r.hour >= v.from_hour AND r.hour < v.to_hour
    CROSS JOIN series s ON s.no = r.series_no
  WHERE v.generation > 0
  GROUP BY v.tenant, v.metric, v.generation, r.hour, s.key
) p
