import { randomUUID } from "node:crypto";
import { expect, send, setup, signIn, test } from "./fixture.ts";

test("a key is tried, kept in the tab alone, and forgotten on signing out", async ({ page, allowed, context }) => {
  allowed.push(/status of 40[13]/);
  const { keyed, keys } = setup();
  await page.goto(keyed);
  await page.getByLabel("API key").fill("rm_wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await expect(page.getByRole("alert")).toContainText("does not know this key");
  await signIn(page, keys.reader);
  await page.getByRole("link", { name: "Operate" }).click();
  await expect(page.getByRole("alert").first()).toContainText("may not do that");
  const kept = await page.evaluate(() => [location.href, JSON.stringify(localStorage), document.cookie].join());
  expect(kept).not.toContain(keys.reader);
  const other = await context.newPage();
  await other.goto(keyed);
  await expect(other.getByLabel("API key")).toBeVisible();
  await page.reload();
  await expect(page.getByRole("link", { name: "Sign out" })).toBeVisible();
  await page.getByRole("link", { name: "Sign out" }).click();
  await expect(page.getByLabel("API key")).toBeVisible();
  expect(await page.evaluate(() => sessionStorage.length)).toBe(0);
});

test("two tenants with the same metric see their own figures alone", async ({ page }) => {
  const { keyed, keys } = setup();
  const visits = (shop: string, n: number) =>
    Array.from({ length: n }, () => ({ metric: "visits", labels: { shop }, id: randomUUID() }));
  await send(keyed, visits("berlin", 3), keys.all);
  await send(keyed, visits("paris", 5), keys.third);
  await page.goto(`${keyed}/#/explore?metric=visits&by=shop&from=-24h`);
  for (const [key, own, count, other] of [[keys.all, "berlin", 3, "paris"], [keys.third, "paris", 5, "berlin"]] as const) {
    await signIn(page, key);
    await expect(page.getByRole("row", { name: new RegExp(`^${own} .* ${count}$`) })).toBeVisible();
    await expect(page.getByRole("row")).toHaveCount(2);
    await page.getByRole("combobox", { name: "Filters" }).click();
    await page.getByRole("option", { name: "shop" }).click();
    await expect(page.getByRole("option", { name: own })).toBeVisible();
    await expect(page.getByRole("option", { name: other })).toHaveCount(0);
    await page.keyboard.press("Escape");
    await page.getByRole("link", { name: "Sign out" }).click();
    await expect(page.getByText(own)).toHaveCount(0);
    await page.goto(`${keyed}/#/explore?metric=visits&by=shop&from=-24h`);
  }
});

test("names and labels with markup in them stay text", async ({ page, allowed }) => {
  // The server refuses such a name, which the browser notes.
  allowed.push(/status of 400/);
  const { open } = setup();
  const hostile = '<img src=x onerror="document.title=1"><script>document.title=2</script>';
  await send(open, { metric: "hostile", labels: { page: hostile }, user: hostile });
  const named = await fetch(`${open}/v1/events`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ metric: hostile }),
  });
  expect(named.status).toBe(422);
  await page.goto(`${open}/#/explore?metric=hostile&by=page&from=-24h`);
  await expect(page.getByRole("button", { name: hostile })).toBeVisible();
  await page.getByText("Table", { exact: true }).click();
  await expect(page.getByRole("cell", { name: hostile })).toBeVisible();
  await page.getByRole("combobox", { name: "Filters" }).click();
  await page.getByRole("option", { name: "page" }).click();
  await page.getByRole("option", { name: hostile }).click();
  await expect(page.getByRole("button", { name: `Remove the filter page is ${hostile}` })).toBeVisible();
  await expect(page.getByRole("cell", { name: hostile })).toBeVisible();
  await page.goto(`${open}/#/explore?metric=${encodeURIComponent(hostile)}&by=${encodeURIComponent(hostile)}`);
  await expect(page.getByRole("heading", { name: hostile, exact: true })).toBeVisible();
  await expect(page).toHaveTitle("Explore – Rollmill");
  expect(await page.evaluate(() => document.querySelectorAll("img, #app script").length)).toBe(0);
});
