"""Sends orders with ga4mp: python ga4.py URL KEY COUNT. The package has no retries: its user sends the
events that it has put aside again until all are taken."""
import logging
import sys
import time
import urllib.error

from ga4mp import GtagMP

# It warns of every parameter that it does not know.
logging.disable(logging.WARNING)
url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = GtagMP(api_secret=key, measurement_id="G-TEST", client_id="shop")
client._base_domain = f"{url}/mp/collect"
for n in range(count):
    event = client.create_new_event("purchase")
    event.set_event_param("plan", ["free", "pro", "team"][n % 3])
    event.set_event_param("value", n)
    event.set_event_param("currency", "EUR")
    event.set_event_param("transaction_id", f"order-{n}")
    client.send([event], postpone=True)
    if n % 4 == 3 or n == count - 1:
        for attempt in range(200):
            try:
                client.postponed_send()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        else:
            sys.exit("gave up")
