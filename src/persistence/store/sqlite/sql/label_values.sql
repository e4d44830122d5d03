SELECT DISTINCT v.tenant AS tenant, v.metric AS metric, p.name AS label, p.value AS value
FROM rollmill_served v JOIN label_pairs p ON p.metric_no = v.metric_no
