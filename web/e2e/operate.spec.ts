import { expect, expectAccessible, setup, shot, test } from "./fixture.ts";

test("the cluster: nodes, shards, work, refusals", async ({ page }) => {
  const { open } = setup();
  const bad = JSON.stringify([{ metric: "not a name" }, { metric: "m", value: "x" }]);
  await fetch(`${open}/v1/events`, { method: "POST", headers: { "content-type": "application/json" }, body: bad });
  await page.goto(`${open}/#/operate`);
  await expect(page.getByRole("definition").filter({ hasText: /^Healthy/ })).toBeVisible();
  await expect(page.getByText("metric_invalid")).toBeVisible();
  await expect(page.getByRole("region", { name: "Shards" }).getByRole("row")).toHaveCount(65);
  await page.getByLabel("Only those with a problem").check();
  await expect(page.getByText("No shard has a problem")).toBeVisible();
  await page.getByLabel("Only those with a problem").uncheck();
  await expectAccessible(page);
  await shot(page, "operate-cluster");
});

test("the books balance", async ({ page }) => {
  await page.goto(`${setup().open}/#/operate/accounting`);
  await expect(page.getByText("the books balance")).toBeVisible();
  await expectAccessible(page);
  await shot(page, "operate-accounting");
});

test("limits are found by their key", async ({ page }) => {
  await page.goto(`${setup().open}/#/operate/limits`);
  await page.getByLabel("Find a key").fill("query.max_p");
  await expect(page.getByRole("region", { name: "Configuration" }).getByRole("row")).toHaveCount(2);
  await expectAccessible(page);
  await shot(page, "operate-limits");
});

test("a quarantined event is released or discarded after a question", async ({ page }) => {
  const place = { shard: 3, offset: 17, index: 2 };
  const event = { id: "e-1", raw: '{"metric":"page_view"}', timestamp: "2026-01-01T00:00:00Z", user: null, value: "1.5", series: { metric: "page_view", labels: { page: "/a" } } };
  let settled: unknown = null;
  await page.route("**/v1/quarantine", (route) =>
    route.fulfill({ json: { events: settled ? [] : [{ ...place, tenant: "default", reason: "panicked 3 times", discarded: false, received: "2026-01-01T00:00:01Z", event }], more: 0 } }));
  await page.route("**/v1/quarantine/release", async (route) => {
    settled = route.request().postDataJSON();
    await route.fulfill({ json: { released: place } });
  });
  await page.goto(`${setup().open}/#/operate/quarantine`);
  await expect(page.getByText("panicked 3 times")).toBeVisible();
  await expectAccessible(page);
  await shot(page, "operate-quarantine");
  await page.getByRole("button", { name: "Release" }).click();
  await expect(page.getByRole("dialog")).toContainText("cannot be taken back");
  await page.keyboard.press("Escape");
  await expect(page.getByRole("dialog")).toHaveCount(0);
  await page.getByRole("button", { name: "Release" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Release" }).click();
  await expect(page.getByText("The quarantine is empty")).toBeVisible();
  expect(settled).toEqual(place);
});

test("a replay is started, compared, applied, undone and cancelled", async ({ page }) => {
  // A replay runs at a low priority, so it waits for everything else on a busy machine.
  test.setTimeout(600_000);
  await page.goto(`${setup().open}/#/operate/replays`);
  await page.getByRole("button", { name: "Start a replay" }).click();
  await page.getByRole("combobox", { name: "Metric" }).fill("departure");
  await page.getByRole("option", { name: /departure_delay/ }).click();
  await page.getByLabel("First day (UTC)").fill("2013-01-09");
  await page.getByLabel("Before this day").fill("2013-01-10");
  await page.getByLabel("Rules as JSON").fill("{ no json");
  await expect(page.getByText("This is no JSON.")).toBeVisible();
  await page.getByLabel("Rules as JSON").fill(JSON.stringify({ rule: [{ name: "no LGA", where: { labels: '{origin="LGA"}' }, drop: true }] }));
  await expectAccessible(page);
  await page.getByRole("button", { name: "Start", exact: true }).click();
  await expect(page.getByText("ready", { exact: true })).toBeVisible({ timeout: 300_000 });
  await page.getByRole("button", { name: "Compare" }).click();
  await expect(page.getByRole("region", { name: "Rows that differ" })).toContainText("origin=LGA");
  await expectAccessible(page);
  await shot(page, "operate-replay");
  await page.getByRole("button", { name: "Apply" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Apply" }).click();
  await expect(page.getByText("served", { exact: true })).toBeVisible();
  await page.goto(`${setup().open}/#/explore?metric=departure_delay&from=2013-01-08T00:00:00Z&to=2013-01-12T00:00:00Z`);
  await expect(page.getByText("Recomputed.")).toBeVisible();
  await page.goto(`${setup().open}/#/operate/replays`);
  await page.getByRole("button", { name: "Undo" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Undo" }).click();
  await expect(page.getByText("undone, ready again")).toBeVisible();
  await page.getByRole("button", { name: "Cancel it" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel the replay" }).click();
  await expect(page.getByText("undone, ready again")).toHaveCount(0);
});
