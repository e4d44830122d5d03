/** Starts what the tests look at: a server without keys that has flights, and one with keys. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { gunzipSync, gzipSync } from "node:zlib";

const BINARY = resolve(process.env.ROLLMILL_BIN ?? "../target/debug/rollmill");
const FLIGHTS = process.env.ROLLMILL_FLIGHTS ?? "../data-sets/events_by_arrival.csv.gz";
/** The first three weeks or so: enough for every view, and quick to send. */
const LINES = Number(process.env.ROLLMILL_FLIGHT_LINES ?? 20_000);

const started: ChildProcess[] = [];

/** The server takes variables that begin with its name for configuration. */
const ENV = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ROLLMILL_")));

/** Below the ports that the system hands out itself, and beside those of the tests in Rust. */
const PORTS = { first: 16_000, count: 2_000 };
let handedOut = 0;

/**
 * A port on which nobody listens. The system gives it to nobody else, neither before its server
 * binds it nor while that is down.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    // Every process begins elsewhere.
    const port = PORTS.first + ((process.pid + handedOut++) % PORTS.count);
    if (await isFree(port)) return port;
  }
}

function isFree(port: number): Promise<boolean> {
  return new Promise((go) => {
    const probe = createServer();
    probe.once("error", () => go(false));
    probe.listen(port, "127.0.0.1", () => probe.close(() => go(true)));
  });
}

/** Ends a process, and waits for that: while it writes, its folder cannot be removed. */
export async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGKILL");
  await ended;
}

export async function until(what: string, isTrue: () => Promise<boolean>, seconds = 300): Promise<void> {
  for (let i = 0; i < seconds * 5; i++) {
    if (await isTrue().catch(() => false)) return;
    await new Promise((go) => setTimeout(go, 200));
  }
  throw new Error(`waited in vain: ${what}`);
}

const isReady = (url: string) => async () => (await fetch(`${url}/readyz`)).ok;

/** Starts a server on a folder of its own, and waits until it is ready. */
export async function startServer(folder: string, port: number, settings: string[]): Promise<ChildProcess> {
  const config = join(folder, "rollmill.toml");
  // A busy machine is slow, and that is no fault of the page.
  const lines = ['flush.interval = "1s"', 'query.timeout = "5m"', ...settings];
  writeFileSync(config, lines.join("\n"));
  const args = ["serve", "--config", config, "--data", join(folder, "data"), "--listen", `127.0.0.1:${port}`];
  const server = spawn(BINARY, args, { stdio: "ignore", env: ENV });
  const url = `http://127.0.0.1:${port}`;
  await until(`${url} is ready`, isReady(url));
  return server;
}

/** Makes a key in a keys file. */
export function addKey(file: string, tenant: string, scopes: string): string {
  const args = ["keys", "add", "--file", file, "--tenant", tenant, "--scopes", scopes];
  return /rm_\w+/.exec(execFileSync(BINARY, args, { env: ENV }).toString())?.[0] ?? "";
}

async function serve(folder: string, port: number, keys?: string): Promise<string> {
  const settings = ['accept.max_age = "20000d"', 'archive.keep = "0"'];
  if (keys) settings.push(`auth.keys_file = "${keys}"`);
  started.push(await startServer(folder, port, settings));
  return `http://127.0.0.1:${port}`;
}

/**
 * Waits until answers cover all that was sent so far. One that is some seconds behind counts as
 * complete, and for a fixed range the page does not ask again.
 */
async function untilApplied(url: string): Promise<void> {
  const sent = Date.now();
  const year = "from=2013-01-01T00:00:00Z&to=2014-01-01T00:00:00Z";
  await until("all flights are applied", async () => {
    const answer = await fetch(`${url}/v1/query?metric=departure_delay&${year}&step=all`);
    const { completeness } = (await answer.json()) as { completeness: { partial: boolean; as_of: string } };
    return !completeness.partial && Date.parse(completeness.as_of) >= sent;
  });
}

/** The server itself, or the page built here in front of it if its binary has none. */
async function withPage(url: string): Promise<string> {
  if ((await (await fetch(url)).text()).includes('id="app"')) return url;
  const port = await freePort();
  const env = { ...ENV, PORT: String(port), ROLLMILL_URL: url };
  started.push(spawn(process.execPath, ["scripts/dev-server.mjs"], { env, stdio: "ignore" }));
  const page = `http://127.0.0.1:${port}`;
  await until(`${page} is there`, async () => (await fetch(page)).ok);
  return page;
}

/** What the page has to show of the first week, counted here. */
function expected(lines: string[]) {
  const names = (lines[0] ?? "").split(",");
  const at = (name: string) => names.indexOf(name);
  const byOrigin: Record<string, { count: number; sum: number }> = {};
  for (const line of lines.slice(1)) {
    const cells = line.split(",");
    const time = cells[at("event_time")] ?? "";
    if (time < "2013-01-08" || time >= "2013-01-15") continue;
    const origin = (byOrigin[cells[at("origin")] ?? ""] ??= { count: 0, sum: 0 });
    origin.count += 1;
    origin.sum += Number(cells[at("dep_delay_min")] || 0);
  }
  return byOrigin;
}

export default async function setup() {
  const folder = mkdtempSync(join(tmpdir(), "rollmill-web-"));
  const lines = gunzipSync(readFileSync(FLIGHTS)).toString().split("\n").slice(0, LINES + 1);
  const flights = join(folder, "flights.csv.gz");
  writeFileSync(flights, gzipSync(`${lines.join("\n")}\n`));

  const open = await serve(mkdtempSync(join(folder, "open-")), await freePort());
  execFileSync(BINARY, [
    "send", flights, "--url", open, "--metric", "departure_delay", "--time", "event_time",
    "--value", "dep_delay_min", "--user", "tailnum", "--label", "origin=origin", "--label", "carrier=carrier",
  ], { stdio: "ignore", env: ENV });
  await untilApplied(open);

  const keys = join(folder, "keys.json");
  const all = addKey(keys, "shop", "read,write,admin,operator");
  const reader = addKey(keys, "shop", "read");
  const rival = addKey(keys, "rival", "read,write");
  const third = addKey(keys, "third", "read,write");
  const keyedFolder = mkdtempSync(join(folder, "keyed-"));
  const keyedPort = await freePort();
  const keyed = await serve(keyedFolder, keyedPort, keys);

  process.env.E2E = JSON.stringify({
    open: await withPage(open), keyed: await withPage(keyed), keys: { all, reader, rival, third }, flights,
    expected: expected(lines), shots: resolve("test-results/shots"),
    keyedServer: { pid: started[1]?.pid, folder: keyedFolder, port: keyedPort, binary: BINARY, url: keyed },
  });
  return async () => {
    await Promise.all(started.map(end));
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  };
}
