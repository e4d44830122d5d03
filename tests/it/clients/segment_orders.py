"""Sends orders with segment-analytics-python: python segment_orders.py URL KEY COUNT"""
import sys

from segment.analytics.client import Client

url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
lost = []
client = Client(key, host=url, max_queue_size=100_000, on_error=lambda error, _: lost.append(error))
for n in range(count):
    client.track(
        f"u{n % 50}",
        "Order Completed",
        {"plan": ["free", "pro", "team"][n % 3], "revenue": n},
    )
client.flush()
client.shutdown()
sys.exit(f"gave up: {lost}" if lost else 0)
