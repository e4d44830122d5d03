/** Three nodes on Kafka, PostgreSQL and S3; one is killed while the page of another watches. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { dirname, resolve } from "node:path";
import { freePort, until } from "./servers.ts";
import { expect, send, setup, shot, test } from "./fixture.ts";

/** Longer than a slow machine takes to start Kafka, PostgreSQL and three nodes. */
const START_SECONDS = 840;

interface Cluster {
  script: ChildProcess;
  /** Addresses of the nodes, and their process ids. */
  nodes: { url: string; pid: number }[];
}

async function start(): Promise<Cluster> {
  const binaries = dirname(setup().keyedServer.binary);
  const env = {
    ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ROLLMILL_"))),
    CARGO_TARGET_DIR: dirname(binaries),
    CLUSTER_PROFILE: binaries.slice(dirname(binaries).length + 1),
    CLUSTER_PORT: String(await freePort()),
  };
  const script = spawn(resolve("../scripts/cluster"), [setup().flights], { env, stdio: ["ignore", "pipe", "pipe"] });
  let said = "";
  for (const stream of [script.stdout, script.stderr]) stream.on("data", (text) => (said += String(text)));
  const ready = /three nodes on ports (\d+), (\d+), (\d+) \(pids (\d+) (\d+) (\d+)\)/;
  await until("the cluster serves", async () => ready.test(said) || script.exitCode !== null, START_SECONDS);
  if (script.exitCode !== null) throw new Error(said);
  const [a, b, c, ...pids] = (ready.exec(said) ?? []).slice(1).map(Number);
  return { script, nodes: [a, b, c].map((port, i) => ({ url: `http://127.0.0.1:${port}`, pid: pids[i] ?? 0 })) };
}

let cluster: Cluster;

test.beforeAll(async () => {
  test.setTimeout(900_000);
  cluster = await start();
});

test.afterAll(async () => {
  if (!cluster || cluster.script.exitCode !== null) return;
  const ended = new Promise((go) => cluster.script.once("exit", go));
  cluster.script.kill("SIGTERM");
  await ended;
});

const orders = (n: number) => Array.from({ length: n }, () => ({ metric: "order", labels: { shop: "berlin" }, id: randomUUID() }));

test("a node is killed: what is missing is named, and in the end nothing is", async ({ page }) => {
  test.setTimeout(600_000);
  const [first, watched] = cluster.nodes;
  if (!first || !watched) throw new Error("no nodes");
  await send(watched.url, orders(100));
  await page.goto(`${watched.url}/#/operate`);
  await expect(page.getByText("3 of 3", { exact: true })).toBeVisible();
  await shot(page, "cluster-before");
  await page.goto(`${watched.url}/#/live?metric=order`);
  const count = page.getByRole("row", { name: /^count / });
  await expect(count).toContainText("100");
  // Looked for in the page, at every frame: it lasts until the shards have moved, which may be over
  // before a slow browser has been asked twice.
  const isNamed = () => /Partial: \d+ of 64 shards.*Missing: shard \d+ \(/s.test(document.body.textContent ?? "");
  const named = page.waitForFunction(isNamed, undefined, { timeout: 90_000 });
  process.kill(first.pid, "SIGKILL");
  await named;
  await shot(page, "cluster-partial");
  await send(watched.url, orders(150));
  await expect(page.getByText(/^Partial: /)).toHaveCount(0);
  await expect(count).toContainText("250");
  await page.goto(`${watched.url}/#/explore?metric=departure_delay&from=2013-01-08T00:00:00Z&to=2013-01-15T00:00:00Z&by=origin`);
  for (const [origin, { count: flights }] of Object.entries(setup().expected)) {
    await expect(page.getByRole("row", { name: new RegExp(`^${origin} `) })).toContainText(flights.toLocaleString("en-US"));
  }
  await page.goto(`${watched.url}/#/operate`);
  await expect(page.getByRole("definition").filter({ hasText: /^Healthy/ })).toBeVisible();
  await shot(page, "cluster-after");
});
