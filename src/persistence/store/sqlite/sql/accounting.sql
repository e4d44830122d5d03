-- As far as it is in the store: what the API calls pending is not.
SELECT TIME(a.hour) AS time, a.tenant AS tenant, a.aggregated AS aggregated, a.deduplicated AS deduplicated, a.quarantined AS quarantined,
  a.hour AS hour
FROM accounting a
