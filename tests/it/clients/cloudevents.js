// Sends orders with npm's cloudevents: node cloudevents.js URL KEY COUNT. The package has no retries:
// its user sends an event again until it is taken.
const { CloudEvent, HTTP, emitterFor, Mode } = require('cloudevents');
const [url, key, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
async function send(message) {
  for (let attempt = 0; attempt < 200; attempt += 1) {
    const headers = { ...message.headers, authorization: `Bearer ${key}` };
    const answer = await fetch(`${url}/v1/cloudevents`, { method: 'POST', headers, body: message.body })
      .catch((error) => ({ status: 0, text: () => error.message }));
    // Read in any case: the connection is busy until then.
    const text = await answer.text();
    if (answer.status === 202) return;
    if (![0, 429, 503].includes(answer.status)) throw new Error(`${answer.status} ${text}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('gave up');
}
const modes = [Mode.BINARY, Mode.STRUCTURED].map((mode) => emitterFor(send, { mode }));
(async () => {
  let batch = [];
  for (let n = 0; n < count; n += 1) {
    const event = new CloudEvent({
      id: `order-${n}`,
      source: 'https://shop.example/orders?from=test',
      type: 'com.example.order',
      subject: `u${n % 50}`,
      data: { plan: ['free', 'pro', 'team'][n % 3], revenue: n },
    });
    if (n % 10 < 2) await modes[n % 10](event);
    else batch.push(event);
    if (batch.length === 40 || n === count - 1) {
      const body = `[${batch.map((one) => HTTP.structured(one).body).join(',')}]`;
      await send({ headers: { 'content-type': 'application/cloudevents-batch+json' }, body });
      batch = [];
    }
  }
})().catch((error) => { console.error(error); process.exit(1); });
