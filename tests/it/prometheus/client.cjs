// prometheus-query, as its users call it: prints what it returns, as JSON.
const { PrometheusDriver } = require(process.argv[2]);
const [url, key, start, end] = process.argv.slice(3);
const driver = new PrometheusDriver({ endpoint: url, auth: { username: "any", password: key } });
const from = new Date(Number(start) * 1000);
const to = new Date(Number(end) * 1000);

(async () => {
  const instant = await driver.instantQuery("sum by (page) (count_over_time(page_view[24h]))", to);
  const range = await driver.rangeQuery("sum(page_view)", from, to, 3600);
  const series = await driver.series('page_view{country="DE"}', from, to);
  const found = {
    instant: instant.result.map((r) => [r.metric.labels.page, r.value.value]),
    range: range.result[0].values.map((point) => [point.time.getTime(), point.value]),
    labels: await driver.labelNames(),
    values: await driver.labelValues("country"),
    series: series.map((metric) => [metric.name, metric.labels.page]),
    build: (await driver.statusBuildinfo()).version,
  };
  try {
    await driver.instantQuery("increase(page_view[5m])");
  } catch (error) {
    found.refused = String(error.error ?? error);
  }
  console.log(JSON.stringify(found));
})();
