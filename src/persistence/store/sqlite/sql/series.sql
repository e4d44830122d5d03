SELECT k.tenant AS tenant, k.metric AS metric, LABELS(k.key) AS labels
FROM (SELECT DISTINCT v.tenant AS tenant, v.metric AS metric, s.key AS key FROM rollmill_served v JOIN series s ON s.metric_no = v.metric_no) k
