-- The hours [from_hour, to_hour) in which the rows of a metric number are what is served: all of generation 0, except where a replay is served.
WITH pieces AS (
  SELECT t.key AS tenant, m.key AS metric, json_extract(p.value, '$.generation') AS generation,
    json_extract(p.value, '$.days[0]') * 24 AS from_hour, coalesce(json_extract(p.value, '$.days[1]') * 24, 2147483648) AS to_hour
  FROM generation_book b, json_each(b.document, '$.pointers') t, json_each(t.value) m, json_each(m.value) p
), cut AS (
  SELECT tenant, metric, generation, from_hour, to_hour FROM pieces
  UNION ALL
  SELECT tenant, metric, 0, coalesce(lag(to_hour) OVER (PARTITION BY tenant, metric ORDER BY from_hour), -2147483648), from_hour FROM pieces
  UNION ALL
  SELECT tenant, metric, 0, max(to_hour), 2147483648 FROM pieces GROUP BY tenant, metric
)
SELECT m.no AS metric_no, t.name AS tenant, m.name AS metric, m.generation AS generation, coalesce(c.from_hour, -2147483648) AS from_hour,
  coalesce(c.to_hour, 2147483648) AS to_hour
FROM metrics m JOIN tenants t ON t.no = m.tenant_no
  LEFT JOIN cut c ON c.tenant = t.name AND c.metric = m.name AND c.generation = m.generation
WHERE m.generation = 0 OR c.generation IS NOT NULL
