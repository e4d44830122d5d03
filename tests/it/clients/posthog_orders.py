"""Sends orders with PyPI's posthog: python posthog_orders.py URL KEY COUNT MODE, where MODE is v0 or v1"""
import sys

from posthog import Posthog

url, key, count, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
lost = []
client = Posthog(
    key,
    host=url,
    max_queue_size=100_000,
    on_error=lambda error, _: lost.append(error),
    **({"capture_mode": "v1"} if mode == "v1" else {}),
)
for n in range(count):
    client.capture(
        "Order Completed",
        distinct_id=f"u{n % 50}",
        properties={"plan": ["free", "pro", "team"][n % 3], "revenue": n},
    )
client.flush()
client.shutdown()
sys.exit(f"gave up: {lost}" if lost else 0)
