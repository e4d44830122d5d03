import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { until } from "./servers.ts";
import { expect, expectAccessible, send, setup, shot, signIn, test } from "./fixture.ts";

/** Within how many milliseconds a change is shown. The best of several tries counts, as for speed. */
const SOON_MS = 5000;
const TRIES = 10;

const event = (timestamp?: number) => ({ metric: "order", labels: { shop: "berlin" }, value: "0.1", id: randomUUID(), timestamp });

test("updates come within a second or two, late ones are called corrections", async ({ page }) => {
  const { keyed, keys } = setup();
  await send(keyed, Array.from({ length: 50 }, () => event()), keys.all);
  await send(keyed, [event(Date.now() - 5 * 3_600_000)], keys.all);
  await page.goto(`${keyed}/#/live?metric=order&agg=count,sum`);
  await signIn(page, keys.all);
  await expect(page.getByText("live", { exact: true })).toBeVisible();
  const count = page.getByRole("row", { name: /^count / });
  await expect(count).toContainText("51");
  let [total, best] = [51, Number.POSITIVE_INFINITY];
  for (let i = 0; i < TRIES && best >= SOON_MS; i++) {
    await send(keyed, [event(), event()], keys.all);
    const sentAt = Date.now();
    total += 2;
    await expect(count).toContainText(String(total));
    best = Math.min(best, Date.now() - sentAt);
  }
  expect(best).toBeLessThan(SOON_MS);
  await expect(page.getByRole("row", { name: /^sum / })).toContainText((total / 10).toFixed(1));
  await send(keyed, [event(Date.now() - 5 * 3_600_000)], keys.all);
  await expect(page.getByText("Corrected while you watched")).toBeVisible();
  const chart = page.getByRole("slider").first();
  await chart.focus();
  await page.keyboard.press("End");
  await expect(chart).toHaveAttribute("aria-valuetext", /not final/);
  await expectAccessible(page);
  await shot(page, "live");
});

test("a lost connection is said, and comes back by itself", async ({ page, allowed }) => {
  allowed.push(/WebSocket connection/, /Failed to load resource/, /net::ERR/);
  const { keyed, keys, keyedServer } = setup();
  await page.goto(`${keyed}/#/live?metric=order`);
  await signIn(page, keys.all);
  await expect(page.getByText("live", { exact: true })).toBeVisible();
  const total = page.getByRole("row", { name: /^count / }).getByRole("cell").last();
  const before = await total.innerText();
  process.kill(keyedServer.pid, "SIGKILL");
  await expect(page.getByText("connection lost, trying again")).toBeVisible();
  const { binary, folder, port, url } = keyedServer;
  const child = spawn(binary, ["serve", "--config", join(folder, "rollmill.toml"), "--data", join(folder, "data"), "--listen", `127.0.0.1:${port}`], { stdio: "ignore", env: { PATH: process.env.PATH } });
  process.env.E2E = JSON.stringify({ ...setup(), keyedServer: { ...keyedServer, pid: child.pid } });
  // At once, because its folder is removed next.
  process.on("exit", () => child.kill("SIGKILL"));
  await until("the server is back", async () => (await fetch(`${url}/readyz`)).ok);
  await expect(page.getByText("live", { exact: true })).toBeVisible();
  await expect(total).toHaveText(before);
});
