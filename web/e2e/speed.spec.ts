/**
 * Bounds for speed. The best of several tries counts: a busy machine makes each of them slower, and
 * none faster. So they go on for a while, until one is fast enough.
 */
import type { Page } from "@playwright/test";
import { expect, setup, test } from "./fixture.ts";

const WEEK = "from=2013-01-08T00:00:00Z&to=2013-01-15T00:00:00Z";
const TRIES = 5;
const PATIENCE_MS = 120_000;

/** Tries some times at least, then until one is below the bound or patience ends. */
async function tries(bound: number, one: () => Promise<number>): Promise<number[]> {
  const times: number[] = [];
  const end = Date.now() + PATIENCE_MS;
  while (times.length < TRIES || (Math.min(...times) >= bound && Date.now() < end)) times.push(await one());
  return times;
}

/** Milliseconds from what `since` says of the query to the frame that shows its chart. */
async function untilChart(page: Page, address: string, since: "startTime" | "responseEnd"): Promise<number> {
  await page.goto("about:blank");
  await page.goto(address);
  await page.waitForFunction(() =>
    (window as unknown as { chartAt?: number }).chartAt !== undefined
      && performance.getEntriesByType("resource").some(({ name }) => name.includes("/v1/query?")));
  return page.evaluate((mark) => {
    const entries = performance.getEntriesByType("resource") as PerformanceResourceTiming[];
    const query = entries.find(({ name }) => name.includes("/v1/query?"));
    return (window as unknown as { chartAt: number }).chartAt - (query?.[mark] ?? Number.NaN);
  }, since);
}

/** Notes when the first chart has been painted. */
async function noteChart(page: Page): Promise<void> {
  await page.addInitScript(() => {
    const observer = new MutationObserver(() => {
      if (!document.querySelector(".uplot canvas")) return;
      observer.disconnect();
      // The frame after the one in which it was drawn.
      requestAnimationFrame(() => requestAnimationFrame(() => ((window as unknown as { chartAt: number }).chartAt = performance.now())));
    });
    observer.observe(document, { childList: true, subtree: true });
  });
}

test("the first load is below 150 KB compressed", async ({ page }) => {
  await page.goto(`${setup().open}/#/explore`);
  await expect(page.getByRole("combobox", { name: "Metric" })).toBeVisible();
  const bytes = await page.evaluate(() =>
    [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
      .map((entry) => (entry as PerformanceResourceTiming).encodedBodySize)
      .reduce((a, b) => a + b, 0));
  console.log(`first load: ${bytes} bytes`);
  expect(bytes).toBeGreaterThan(10_000);
  expect(bytes).toBeLessThan(150_000);
});

test("a first chart is there within 300 ms of the request", async ({ page }) => {
  await noteChart(page);
  const address = `${setup().open}/#/explore?metric=departure_delay&${WEEK}&by=origin`;
  const times = await tries(300, () => untilChart(page, address, "startTime"));
  console.log(`first chart: ${times.map(Math.round).join(", ")} ms`);
  expect(Math.min(...times)).toBeLessThan(300);
});

test("a hundred thousand points stay smooth", async ({ page }) => {
  test.setTimeout(600_000);
  const [series, hours, from] = [10, 10_000, Date.parse("2012-01-01T00:00:00Z")];
  const at = (hour: number) => new Date(from + hour * 3_600_000).toISOString();
  const json = {
    metric: "departure_delay", from: at(0), to: at(hours), step: "1h", tz: "UTC",
    series: Array.from({ length: series }, (_, s) => ({
      labels: { carrier: `C${s}` },
      points: Array.from({ length: hours }, (_, hour) => ({ t: at(hour), count: String(Math.round(500 + 400 * Math.sin(hour / 50 + s)) + s) })),
    })),
    completeness: { partial: false, shards: 64, missing: [], generations: [] },
  };
  const body = JSON.stringify(json);
  await page.route("**/v1/query?*", (route) => route.fulfill({ body, contentType: "application/json" }));
  await noteChart(page);
  const address = `${setup().open}/#/explore?metric=departure_delay&from=${at(0)}&to=${at(hours)}&step=1h&by=carrier`;
  const draws = await tries(1500, () => untilChart(page, address, "responseEnd"));
  const frames = await tries(34, () => framesUnderTheCursor(page));
  console.log(`100,000 points: drawn in ${draws.map(Math.round).join(", ")} ms, frames of ${frames.map(Math.round).join(", ")} ms`);
  expect(Math.min(...draws)).toBeLessThan(1500);
  // Thirty a second: a slower frame is seen.
  expect(Math.min(...frames)).toBeLessThan(34);
});

/** The median frame while the cursor moves over the chart, legend included. */
function framesUnderTheCursor(page: Page): Promise<number> {
  return page.evaluate(async () => {
    const over = document.querySelector(".u-over");
    if (!over) throw new Error("no chart");
    const box = over.getBoundingClientRect();
    const frame = () => new Promise<number>((go) => requestAnimationFrame(go));
    const times: number[] = [];
    let last = await frame();
    for (let i = 0; i < 40; i++) {
      const at = { clientX: box.left + (box.width * (i + 0.5)) / 40, clientY: box.top + 50, bubbles: true };
      over.dispatchEvent(new MouseEvent("mousemove", at));
      const now = await frame();
      times.push(now - last);
      last = now;
    }
    return times.sort((a, b) => a - b)[20] ?? Number.NaN;
  });
}
