"""prometheus-api-client, as its users call it: prints what it returns, as JSON."""
import json
import sys
from datetime import datetime, timezone

from prometheus_api_client import PrometheusApiClientException, PrometheusConnect

url, key, start, end = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
when = lambda seconds: datetime.fromtimestamp(seconds, timezone.utc)
by_header = PrometheusConnect(url=url, headers={"Authorization": f"Bearer {key}"})
by_password = PrometheusConnect(url=url, auth=("any", key), method="POST")
found = {"connected": by_header.check_prometheus_connection()}
for name, client in (("bearer", by_header), ("password", by_password)):
    found[name] = {
        "metrics": sorted(client.all_metrics()),
        "labels": client.get_label_names(),
        "values": client.get_label_values("country"),
        "instant": client.custom_query("sum by (page) (count_over_time(page_view[24h]))", params={"time": end}),
        "current": client.get_current_metric_value("page_view", {"country": "DE"}, params={"time": end}),
        "range": client.custom_query_range("sum(page_view)", when(start + 1800), when(end), "1h"),
        "series": client.get_series(when(start), when(end), params={"match[]": "page_view{country=\"DE\"}"}),
    }
try:
    by_header.custom_query("increase(page_view[5m])")
except PrometheusApiClientException as error:
    found["refused"] = str(error)
print(json.dumps(found))
