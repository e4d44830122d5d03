/** A page that is watched: any console error and any request elsewhere fails its test. */
import AxeBuilder from "@axe-core/playwright";
import { test as base, expect, type Page } from "@playwright/test";

interface Setup {
  open: string;
  keyed: string;
  keys: { all: string; reader: string; rival: string; third: string };
  /** The flights that were sent, as a file. */
  flights: string;
  expected: Record<string, { count: number; sum: number }>;
  shots: string;
  keyedServer: { pid: number; folder: string; port: number; binary: string; url: string };
}

export const setup = (): Setup => JSON.parse(process.env.E2E ?? "{}") as Setup;

interface Fixtures {
  /** Console errors that the test means to cause. */
  allowed: RegExp[];
  /** Hosts that pages may ask: the servers under test. */
  hosts: string[];
  watched: undefined;
}

export const test = base.extend<Fixtures>({
  allowed: [async ({}, use) => use([]), { scope: "test" }],
  hosts: [async ({}, use) => use(["127.0.0.1"]), { scope: "test" }],
  watched: [
    async ({ page, allowed, hosts }, use) => {
      const faults: string[] = [];
      page.on("console", (message) => {
        const isFault = message.type() === "error" || message.type() === "warning";
        if (isFault && !allowed.some((pattern) => pattern.test(message.text()))) faults.push(message.text());
      });
      page.on("pageerror", (error) => faults.push(error.message));
      page.on("request", (request) => {
        const { hostname, protocol } = new URL(request.url());
        if (!hosts.includes(hostname) && protocol !== "blob:") faults.push(`request to ${request.url()}`);
      });
      await use(undefined);
      expect(faults).toEqual([]);
    },
    { auto: true },
  ],
});

export { expect };

/** No fault that axe calls serious or critical. */
export async function expectAccessible(page: Page): Promise<void> {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  expect(serious.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" | ")}`)).toEqual([]);
}

export async function shot(page: Page, name: string): Promise<void> {
  await page.screenshot({ path: `${setup().shots}/${name}.png`, fullPage: true });
}

export async function signIn(page: Page, key: string): Promise<void> {
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await expect(page.getByRole("navigation", { name: "Views" })).toBeVisible();
}

const NOTHING_YET = "nothing is copied yet";

/** What a button copies. The page does so after the click, and another test may have copied too. */
export async function copied(page: Page, name: string): Promise<string> {
  const clipboard = () => page.evaluate(() => navigator.clipboard.readText());
  await page.evaluate((text) => navigator.clipboard.writeText(text), NOTHING_YET);
  await page.getByRole("button", { name, exact: true }).click();
  await expect.poll(clipboard).not.toBe(NOTHING_YET);
  return clipboard();
}

/** Sends events with a key of the server with keys, or without one. */
export async function send(base: string, events: unknown, key?: string): Promise<void> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(`${base}/v1/events`, { method: "POST", headers, body: JSON.stringify(events) });
  expect(answer.status).toBe(202);
}
