/**
 * SDKs for browsers, as their authors publish them, in a page of another origin: the proxy in front of
 * the server answers 503 now and then, the server is killed and started again, and every event
 * counts once. The scripts of the pages are those of docs/how-to/send-from-an-sdk.md.
 */
import type { ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { FaultyProxy } from "./faulty-proxy.ts";
import { expect, test } from "./fixture.ts";
import { addKey, end, freePort, startServer, until } from "./servers.ts";

const SDKS = process.env.ROLLMILL_SDKS ?? "../data-sets/tools/clients/node_modules";
const EVENTS = 1_000;
const PORTION = 50;
/** SDKs wait for twice as long after each failure: on a slow machine for minutes in the end. */
const RETRIED_MS = 400_000;
const PLANS = ["free", "pro", "team"];

/** Functions of the pages' scripts, as these call them. */
declare const analytics: { track(event: string, properties: object): Promise<unknown> };
declare const posthog: {
  capture(event: string, properties: object): void;
  reloadFeatureFlags(): void;
  onFeatureFlags(heard: (flags: string[], variants: object, context?: { errorsLoading?: boolean }) => void): void;
};

/** The block of the page about SDKs below this heading, with our key and address in it. */
function documented(heading: string, key: string, address: string): string {
  const page = readFileSync("../docs/how-to/send-from-an-sdk.md", "utf8");
  const section = page.split(/^#+ /m).find((section) => section.startsWith(`${heading}\n`)) ?? "";
  const script = /```js\n([^]*?)```/.exec(section)?.[1];
  if (!script) throw new Error(`no script below ${heading}`);
  return script.replaceAll("KEY", key).replaceAll("127.0.0.1:8080", address);
}

/** A server for pages: of another origin, and of another site too. */
class PageServer {
  private readonly server: Server;
  script = "";

  constructor(sdk: string, allowed: () => string) {
    const bundle = readFileSync(join(SDKS, sdk));
    this.server = createServer((asked, answer) => {
      const page = '<!doctype html><html lang="en"><title>Shop</title><body><h1>Shop</h1>'
        + '<script src="/sdk.js"></script><script src="/page.js"></script>';
      const files: Record<string, [string, string | Buffer]> = {
        "/": ["text/html", page],
        "/sdk.js": ["text/javascript", bundle],
        "/page.js": ["text/javascript", this.script],
      };
      const [kind, content] = files[asked.url ?? ""] ?? ["text/plain", ""];
      // The second lock beside the fixture that watches: no script and no request from elsewhere.
      const policy = `default-src 'self'; connect-src ${allowed()}`;
      answer.writeHead(200, { "content-type": kind, "content-security-policy": policy }).end(content);
    });
  }

  async start(): Promise<string> {
    await new Promise<void>((go) => this.server.listen(0, "127.0.0.1", go));
    return `http://localhost:${(this.server.address() as AddressInfo).port}`;
  }

  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }
}

const MAPPING = `
[[map]]
event = "Order Completed"
metric = "orders"
value = "/properties/revenue"
labels = { plan = "/properties/plan" }
`;

/** A server behind the proxy, and a page elsewhere that may send to it. */
class Shop {
  readonly folder = mkdtempSync(join(tmpdir(), "rollmill-sdks-"));
  proxy!: FaultyProxy;
  writer = "";
  origin = "";
  private pages!: PageServer;
  private server!: ChildProcess;
  private port = 0;
  private reader = "";

  static async open(sdk: string): Promise<Shop> {
    const shop = new Shop();
    const keys = join(shop.folder, "keys.toml");
    shop.writer = addKey(keys, "shop", "write");
    shop.reader = addKey(keys, "shop", "read");
    writeFileSync(join(shop.folder, "collect.toml"), MAPPING);
    shop.port = await freePort();
    shop.proxy = await FaultyProxy.start(shop.port);
    shop.pages = new PageServer(sdk, () => shop.proxy.url);
    shop.origin = await shop.pages.start();
    await shop.startServer();
    return shop;
  }

  /** Puts a script into the page, and opens it. */
  async visit(page: Page, script: string): Promise<void> {
    this.pages.script = script;
    await page.goto(this.origin);
  }

  get address(): string {
    return new URL(this.proxy.url).host;
  }

  async startServer(): Promise<void> {
    this.server = await startServer(this.folder, this.port, [
      `auth.keys_file = "${join(this.folder, "keys.toml")}"`,
      `collect.mapping_file = "${join(this.folder, "collect.toml")}"`,
      `server.cors_origins = "${this.origin}"`,
    ]);
  }

  async killServer(): Promise<void> {
    await end(this.server);
  }

  /** Starts it again when a request has failed meanwhile. */
  async killAndRestart(): Promise<void> {
    await this.killServer();
    const before = this.proxy.broken;
    await until("a request fails", async () => this.proxy.broken > before);
    await this.startServer();
  }

  async read(path: string): Promise<any> {
    const headers = { authorization: `Bearer ${this.reader}` };
    return (await fetch(`http://127.0.0.1:${this.port}${path}`, { headers })).json();
  }

  /** Orders by plan: how many, and their sum. */
  async orders(): Promise<unknown[]> {
    const answer = await this.read("/v1/query?metric=orders&step=all&agg=count,sum&by=plan");
    return answer.series.map(({ labels, points: [point] }: any) => [labels.plan, point.count, point.sum]);
  }

  async count(metric: string): Promise<number> {
    const answer = await this.read(`/v1/query?metric=${metric}&step=all`);
    return answer.series[0]?.points[0].count ?? 0;
  }

  /** How many events were flushed as duplicates. */
  async copies(): Promise<number> {
    const { hours } = await this.read("/v1/accounting");
    return hours.reduce((sum: number, hour: any) => sum + hour.deduplicated, 0);
  }

  /** Every order counts once, as mapped, although copies of some came in. */
  async expectOrders(count: number): Promise<void> {
    await expect.poll(() => this.orders(), { timeout: RETRIED_MS }).toEqual(expectedOrders(count));
    const { refused, lost, broken } = this.proxy;
    expect(Math.min(refused, lost, broken)).toBeGreaterThan(0);
    // Queries count what shards hold, the accounting what they have flushed.
    await expect.poll(() => this.copies()).toBeGreaterThan(0);
    console.log(`${refused} requests refused, ${lost} answers lost, ${broken} broken`);
  }

  async close(): Promise<void> {
    if (this.server) await end(this.server);
    this.proxy?.stop();
    this.pages?.stop();
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

function expectedOrders(count: number): unknown[] {
  return PLANS.map((plan, at) => {
    const own = Array.from({ length: count }, (_, n) => n).filter((n) => n % PLANS.length === at);
    return [plan, own.length, own.reduce((sum, n) => sum + n, 0)];
  });
}

const order = (n: number) => ({ plan: PLANS[n % PLANS.length], revenue: n });
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, n) => order(from + n));

let shop: Shop | undefined;

test.beforeEach(({ hosts, allowed }) => {
  test.setTimeout(3 * RETRIED_MS);
  hosts.push("localhost");
  // The answers of the proxy, and the time without a server.
  allowed.push(/status of 503/, /net::ERR_/, /has been blocked by CORS policy/);
});

test.afterEach(async () => {
  await shop?.close();
  shop = undefined;
});

/** Sends orders in portions, each a request or more; kills the server amidst, and starts it again. */
async function inPortions(proxy: FaultyProxy, to: number, send: (from: number, to: number) => Promise<void>): Promise<void> {
  let restarted: Promise<void> | undefined;
  for (let from = 0; from < to; from += PORTION) {
    const before = proxy.requests;
    await send(from, from + PORTION);
    await until("the page sends", async () => proxy.requests > before);
    if (from >= to / 3) restarted ??= shop?.killAndRestart();
  }
  await restarted;
}

async function track(page: Page, from: number, to: number): Promise<void> {
  await page.evaluate((orders) => {
    for (const order of orders) void analytics.track("Order Completed", order);
  }, range(from, to));
}

async function capture(page: Page, from: number, to: number): Promise<void> {
  await page.evaluate((orders) => {
    for (const order of orders) posthog.capture("Order Completed", order);
  }, range(from, to));
}

test("@segment/analytics-next: every event counts once, also those that a reload finds unsent", async ({ page }) => {
  shop = await Shop.open("@segment/analytics-next/dist/umd/index.js");
  await shop.visit(page, documented("Segment in a page", shop.writer, shop.address));
  await track(page, 0, 400);
  await until("the page sends", async () => (shop?.proxy.requests ?? 0) > 100);
  await shop.killServer();
  // Each promise ends with the first attempt, which fails: from then on the client keeps the event.
  await page.evaluate(async (orders) => {
    await Promise.all(orders.map((order) => analytics.track("Order Completed", order)));
  }, range(400, 700));
  await page.reload();
  await shop.startServer();
  await track(page, 700, EVENTS);
  await shop.expectOrders(EVENTS);
  expect([...shop.proxy.seen]).toEqual(["/v1/t text/plain"]);
  // The script itself has sent one for each of two visits.
  await expect.poll(() => shop?.count("Signed_Up"), { timeout: RETRIED_MS }).toBe(2);
});

test("@segment/analytics-next in batches: every event counts once", async ({ page }) => {
  shop = await Shop.open("@segment/analytics-next/dist/umd/index.js");
  const script = documented("Segment in a page", shop.writer, shop.address);
  const batching = "protocol: 'http', deliveryStrategy: { strategy: 'batching', config: { timeout: 500 } }";
  await shop.visit(page, script.replace("protocol: 'http'", batching));
  await inPortions(shop.proxy, EVENTS, (from, to) => track(page, from, to));
  await shop.expectOrders(EVENTS);
  expect([...shop.proxy.seen]).toEqual(["/v1/b text/plain"]);
});

test("posthog-js: every event counts once", async ({ page }) => {
  shop = await Shop.open("posthog-js/dist/array.no-external.js");
  const { proxy } = shop;
  const script = documented("PostHog in a page", shop.writer, shop.address);
  // More at once than a person causes, by a browser that says that it is a program's.
  const options = "opt_out_useragent_filter: true, request_queue_config: { flush_interval_ms: 250 },"
    + "rate_limiting: { events_per_second: 1000, events_burst_limit: 2000 }, api_host:";
  await shop.visit(page, script.replace("api_host:", options));
  const flags = await page.evaluate(() => new Promise((go) => {
    posthog.onFeatureFlags((flags, _, context) => go([flags, context?.errorsLoading ?? false]));
    posthog.reloadFeatureFlags();
  }));
  expect(flags).toEqual([[], false]);
  await inPortions(proxy, EVENTS, (from, to) => capture(page, from, to));
  await shop.expectOrders(EVENTS);
  await expect.poll(() => shop?.count("_pageview"), { timeout: RETRIED_MS }).toBe(1);
  expect([...proxy.seen]).toEqual(["/e/ text/plain"]);
});

test("posthog-js sends what is left as the page closes, packed or as a form", async ({ page }) => {
  shop = await Shop.open("posthog-js/dist/array.no-external.js");
  const { proxy } = shop;
  // A page that closes sends once.
  proxy.isFaulty = false;
  const script = documented("PostHog in a page", shop.writer, shop.address);
  const filter = "opt_out_useragent_filter: true, api_host:";
  for (const [from, options] of [[0, filter], [20, `disable_compression: true, ${filter}`]] as const) {
    await shop.visit(page, script.replace("api_host:", options));
    await capture(page, from, from + 10);
    // These came by themselves, and not what the page before sent as it closed.
    await expect.poll(() => shop?.orders()).toEqual(expectedOrders(from + 10));
    await page.evaluate((orders) => {
      for (const order of orders) posthog.capture("Order Completed", order);
      location.assign("about:blank");
    }, range(from + 10, from + 20));
    await expect.poll(() => shop?.orders()).toEqual(expectedOrders(from + 20));
  }
  expect([...proxy.seen]).toEqual([
    "/e/ text/plain", "/e/ application/json", "/e/ application/x-www-form-urlencoded",
  ]);
  await expect.poll(() => shop?.count("_pageleave")).toBe(2);
});
