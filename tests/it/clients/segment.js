// Sends orders with @segment/analytics-node: node segment.js URL KEY COUNT
const { Analytics } = require('@segment/analytics-node');
const [url, key, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const analytics = new Analytics({ host: url, writeKey: key });
analytics.on('error', (error) => { console.error('gave up', error); process.exitCode = 1; });
for (let n = 0; n < count; n += 1) {
  analytics.track({
    userId: `u${n % 50}`,
    event: 'Order Completed',
    properties: { plan: ['free', 'pro', 'team'][n % 3], revenue: n },
  });
}
analytics.closeAndFlush({ timeout: 120000 });
