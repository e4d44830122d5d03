import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import type { Page } from "@playwright/test";
import { copied, expect, expectAccessible, setup, shot, test } from "./fixture.ts";

const WEEK = "from=2013-01-08T00:00:00Z&to=2013-01-15T00:00:00Z";
const figure = (n: number) => n.toLocaleString("en-US").replace("-", "−");

const explore = (page: Page, params: string) => page.goto(`${setup().open}/#/explore?${params}`);
const legend = (page: Page, name: string) => page.getByRole("row", { name: new RegExp(`^${name} `) });

test("a metric is found by typing, and its time range in one click", async ({ page }) => {
  await page.goto(setup().open);
  await expect(page).toHaveURL(/#\/explore/);
  const metric = page.getByRole("combobox", { name: "Metric" });
  await metric.fill("delay");
  await page.getByRole("option", { name: /departure_delay/ }).click();
  await expect(page.getByText("No events in this range")).toBeVisible();
  await page.getByRole("button", { name: "Show all of it" }).click();
  await expect(page.getByRole("slider", { name: /count of departure_delay/ })).toBeVisible();
  await expectAccessible(page);
});

test("figures are exact, by group and filter", async ({ page }) => {
  await explore(page, `metric=departure_delay&${WEEK}&agg=count,sum&step=1d`);
  await page.getByRole("combobox", { name: "Group by" }).click();
  await page.getByRole("option", { name: "origin" }).click();
  const { expected } = setup();
  for (const [origin, { count, sum }] of Object.entries(expected)) {
    await expect(legend(page, origin).first()).toContainText(figure(count));
    await expect(legend(page, origin).nth(1)).toContainText(figure(sum));
  }
  await shot(page, "explore-groups");
  const filter = page.getByRole("combobox", { name: "Filters" });
  await filter.click();
  await page.getByRole("option", { name: "origin" }).click();
  await page.getByRole("combobox", { name: "Filters" }).fill("J");
  await page.getByRole("option", { name: "JFK" }).click();
  await expect(page).toHaveURL(/where=/);
  await expect(page.getByRole("row", { name: /^EWR / })).toHaveCount(0);
  await expect(legend(page, "JFK").first()).toContainText(figure(expected.JFK?.count ?? 0));
  await page.getByRole("button", { name: "Remove the filter origin is JFK" }).click();
  await expect(legend(page, "EWR").first()).toBeVisible();
});

test("dragging zooms, and the address keeps everything", async ({ page }) => {
  await explore(page, `metric=departure_delay&${WEEK}&agg=count&by=origin&view=stacked&tz=Europe/Berlin&compare=1`);
  const chart = page.getByRole("slider");
  await expect(chart).toBeVisible();
  await expect(page.getByRole("columnheader", { name: "Change of the total" })).toBeVisible();
  const box = await page.locator(".u-over").boundingBox();
  if (!box) throw new Error("no chart");
  await page.mouse.move(box.x + box.width * 0.3, box.y + 60);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width * 0.6, box.y + 60, { steps: 8 });
  await page.mouse.up();
  await expect(page).toHaveURL(/from=2013-01-(09|10)/);
  const address = page.url();
  await page.reload();
  await expect(page.getByRole("slider")).toBeVisible();
  expect(page.url()).toBe(address);
  await expect(page.getByRole("radio", { name: "Stacked" })).toBeChecked();
  await page.goBack();
  await expect(page).toHaveURL(/from=2013-01-08/);
});

test("every view of the same answer", async ({ page }) => {
  await explore(page, `metric=departure_delay&${WEEK}&agg=count&by=carrier&top=5&step=1d`);
  await expect(page.getByRole("row")).toHaveCount(6);
  for (const view of ["Stacked", "Bar", "Line"]) {
    await page.getByText(view, { exact: true }).click();
    await expect(page.getByRole("radio", { name: view })).toBeChecked();
    await expect(page.getByRole("slider")).toBeVisible();
    await shot(page, `explore-${view.toLowerCase()}`);
  }
  await page.getByText("Table", { exact: true }).click();
  await expect(page.getByRole("row")).toHaveCount(36);
  await expectAccessible(page);
  await page.getByRole("combobox", { name: "Series" }).selectOption("all");
  await expect(page).toHaveURL(/top=all/);
  await page.getByRole("combobox", { name: "Step" }).selectOption("all");
  await expect(page).toHaveURL(/step=all/);
  await page.getByText("90 d", { exact: true }).click();
  await expect(page.getByText("No events in this range")).toBeVisible();
});

test("the keyboard reads values and zooms", async ({ page }) => {
  await explore(page, `metric=departure_delay&${WEEK}&agg=count&step=1d`);
  const chart = page.getByRole("slider");
  // The chart itself comes a frame after the element that takes the keys.
  await expect(page.locator(".u-over")).toBeVisible();
  await chart.focus();
  await page.keyboard.press("Home");
  await expect(chart).toHaveAttribute("aria-valuetext", /^2013-01-08\. count: \d+/);
  await page.keyboard.press("ArrowRight");
  await expect(chart).toHaveAttribute("aria-valuetext", /^2013-01-09/);
  await page.keyboard.press("+");
  await expect(page).not.toHaveURL(/from=2013-01-08.*to=2013-01-15/);
});

test("copied commands ask the same, and files hold it", async ({ page }) => {
  await explore(page, `metric=departure_delay&${WEEK}&agg=count,sum&by=origin&step=1d`);
  await expect(page.getByRole("slider").first()).toBeVisible();
  const curl = await copied(page, "Copy curl");
  const answer = JSON.parse(execFileSync("bash", ["-c", `${curl} -s`]).toString()) as { series: { labels: { origin: string }; points: { count: number }[] }[] };
  for (const { labels, points } of answer.series) {
    expect(points.reduce((sum, point) => sum + point.count, 0)).toBe(setup().expected[labels.origin]?.count);
  }
  const command = await copied(page, "Copy command");
  const printed = execFileSync("bash", ["-c", command.replace(/^rollmill/, `"${setup().keyedServer.binary}"`)], { env: { PATH: process.env.PATH } }).toString();
  expect(printed).toContain("JFK");
  const csv = page.waitForEvent("download");
  await page.getByRole("button", { name: "CSV" }).click();
  const file = await csv;
  expect(file.suggestedFilename()).toBe("departure_delay.csv");
  expect(readFileSync(await file.path(), "utf8").split("\r\n")).toHaveLength(23);
  const png = page.waitForEvent("download");
  await page.getByRole("button", { name: "PNG" }).click();
  const picture = readFileSync(await (await png).path());
  expect(picture.subarray(1, 4).toString()).toBe("PNG");
});

test("what is partial is named, and errors say what to do", async ({ page, allowed }) => {
  allowed.push(/status of 422/);
  await page.route("**/v1/query?*", async (route) => {
    const answer = await route.fetch();
    const body = (await answer.json()) as { completeness: object };
    body.completeness = { partial: true, shards: 64, missing: [{ shard: 7, reason: "behind", behind_ms: 42_000 }], generations: [] };
    await route.fulfill({ response: answer, json: body });
  });
  await explore(page, `metric=departure_delay&${WEEK}&agg=count`);
  await expect(page.getByText("Partial: 1 of 64 shards")).toBeVisible();
  await expect(page.getByText("42 s behind")).toBeVisible();
  await page.unroute("**/v1/query?*");
  await page.route("**/v1/query?*", (route) =>
    route.fulfill({ status: 422, json: { error: { code: "too_many_points", message: "ask for fewer", details: {} } } }));
  await explore(page, `metric=departure_delay&${WEEK}&agg=sum`);
  await expect(page.getByRole("alert")).toContainText("ask for fewer");
  await expectAccessible(page);
});

test("it is usable at the width of a phone and in the dark", async ({ browser }) => {
  const context = await browser.newContext({ viewport: { width: 390, height: 844 }, colorScheme: "dark" });
  const page = await context.newPage();
  await explore(page, `metric=departure_delay&${WEEK}&agg=count&by=origin&view=bar&compare=1`);
  await expect(page.getByRole("slider")).toBeVisible();
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  expect(overflow).toBeLessThanOrEqual(0);
  await expectAccessible(page);
  await shot(page, "explore-phone-dark");
  await context.close();
});
