-- As GET /v1/metrics: where a replay is served, windows are united with those ingested, and the larger number of series counts. Each writer of a replay
-- has numbered its series.
SELECT v.tenant AS tenant, v.metric AS metric, max(CASE WHEN m.generation = 0 THEN m.series_count
    ELSE (SELECT count(DISTINCT s.id) FROM series s WHERE s.metric_no = m.no) END) AS series,
  TIME(min(m.first_hour)) AS first, TIME(max(m.last_hour)) AS last
FROM (SELECT DISTINCT tenant, metric, metric_no FROM rollmill_served) v JOIN metrics m ON m.no = v.metric_no
GROUP BY v.tenant, v.metric
