// Sends orders with posthog-node: node posthog.js URL KEY COUNT. The environment variable
// POSTHOG_CAPTURE_MODE=v1 makes it use version 1 of the capture interface.
const { PostHog } = require('posthog-node');
const [url, key, count] = [process.argv[2], process.argv[3], Number(process.argv[4])];
const client = new PostHog(key, { host: url, maxQueueSize: 100000 });
client.on('error', (error) => console.error(error));
for (let n = 0; n < count; n += 1) {
  client.capture({
    distinctId: `u${n % 50}`,
    event: 'Order Completed',
    properties: { plan: ['free', 'pro', 'team'][n % 3], revenue: n },
  });
}
// As in an application that runs on: what shutdown() leaves behind would be lost. The end of the input
// is the end.
const flushing = setInterval(() => client.flush().catch((error) => console.error(error)), 1000);
process.stdin.on('end', () => {
  clearInterval(flushing);
  client.shutdown(30000);
});
process.stdin.resume();
