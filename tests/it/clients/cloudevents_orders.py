"""Sends orders with PyPI's cloudevents: python cloudevents_orders.py URL KEY COUNT. The package has no
retries: its user sends an event again until it is taken."""
import datetime
import sys
import time

import requests
from cloudevents.core.bindings.http import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

url, key, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
session = requests.Session()
for n in range(count):
    event = CloudEvent(
        {
            "id": f"order-{n}",
            "source": "/shop/ä",
            "type": "com.example.order",
            "specversion": "1.0",
            "time": datetime.datetime.now(datetime.timezone.utc),
            "datacontenttype": "application/json",
            "subject": f"u{n % 50}",
        },
        {"plan": ["free", "pro", "team"][n % 3], "revenue": n},
    )
    message = (to_binary if n % 2 else to_structured)(event, JSONFormat())
    headers = {**message.headers, "Authorization": f"Bearer {key}"}
    for attempt in range(200):
        try:
            answer = session.post(f"{url}/v1/cloudevents", headers=headers, data=message.body)
        except requests.ConnectionError:
            time.sleep(0.1)
            continue
        if answer.status_code == 202:
            break
        if answer.status_code not in (429, 503):
            sys.exit(f"{answer.status_code} {answer.text}")
        time.sleep(0.1)
    else:
        sys.exit("gave up")
