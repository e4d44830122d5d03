// Sends orders with @rudderstack/rudder-sdk-node: node rudder.js URL KEY COUNT
const Analytics = require('@rudderstack/rudder-sdk-node');
const [url, key, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const client = new Analytics(key, { dataPlaneUrl: url });
const orders = [];
for (let n = 0; n < count; n += 1) {
  orders.push(new Promise((resolve, reject) => client.track({
    userId: `u${n % 50}`,
    event: 'Order Completed',
    properties: { plan: ['free', 'pro', 'team'][n % 3], revenue: n },
  }, (error) => (error ? reject(error) : resolve()))));
}
(async () => {
  while (client.queue.length > 0) await client.flush();
  await Promise.all(orders);
  process.exit(0);
})().catch((error) => { console.error('gave up', error.message); process.exit(1); });
