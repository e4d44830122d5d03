/**
 * A proxy in front of a server. Of every six requests with events it answers one 503 itself, and one
 * 503 although the server took it, until each has happened often enough. While the server is down,
 * connections break.
 */
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** How often each of both happens, so that no client runs out of attempts. */
const INJECTED = 6;

export class FaultyProxy {
  /** Whether it still answers 503. */
  isFaulty = true;
  /** Requests with events that came in. */
  requests = 0;
  refused = 0;
  lost = 0;
  broken = 0;
  /** Paths of these requests, and their content types. */
  readonly seen = new Set<string>();
  private readonly server: Server;

  private constructor(private readonly upstream: number) {
    this.server = createServer((asked, answer) => {
      // A page may go away at any time, which ends its connection and nothing else.
      this.serve(asked, answer).catch(() => answer.destroy());
    });
  }

  static async start(upstream: number): Promise<FaultyProxy> {
    const proxy = new FaultyProxy(upstream);
    await new Promise<void>((go) => proxy.server.listen(0, "127.0.0.1", go));
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }

  private async serve(asked: IncomingMessage, answer: ServerResponse): Promise<void> {
    const parts: Buffer[] = [];
    for await (const part of asked) parts.push(part as Buffer);
    const body = Buffer.concat(parts);
    const path = new URL(asked.url ?? "", this.url).pathname;
    if (asked.method !== "POST" || path === "/flags/") return this.forward(asked, body, answer);
    const number = this.requests++;
    const turn = this.isFaulty ? number % 6 : undefined;
    this.seen.add(`${path} ${asked.headers["content-type"] ?? ""}`);
    if (turn === 1 && this.refused < INJECTED) {
      this.refused += 1;
      return tryLater(asked, answer);
    }
    if (turn === 4 && this.lost < INJECTED) {
      await this.forward(asked, body, undefined);
      this.lost += 1;
      return tryLater(asked, answer);
    }
    return this.forward(asked, body, answer);
  }

  /** Rejects if the server is down; its answer goes nowhere if there is no place for it. */
  private forward(asked: IncomingMessage, body: Buffer, answer: ServerResponse | undefined): Promise<void> {
    const { method, headers, url: path } = asked;
    return new Promise<void>((done, fail) => {
      const options = { host: "127.0.0.1", port: this.upstream, method, path, headers, agent: false };
      const onward = request(options, (given) => {
        given.on("error", fail).on("end", done);
        if (!answer) return given.resume();
        answer.writeHead(given.statusCode ?? 502, given.headers);
        return given.pipe(answer);
      });
      onward.on("error", fail).end(body);
    }).catch((error: unknown) => {
      this.broken += 1;
      throw error;
    });
  }
}

/** What a server that is overloaded says, to a page too. */
function tryLater(asked: IncomingMessage, answer: ServerResponse): void {
  const origin = asked.headers.origin ?? "*";
  answer.writeHead(503, { "retry-after": "1", "access-control-allow-origin": origin }).end();
}
