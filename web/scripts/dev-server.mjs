// Serves the built page, and passes everything else on to a running server, WebSockets included.
import { readFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { connect } from "node:net";
import { pathToFileURL } from "node:url";

const KINDS = { html: "text/html; charset=utf-8", js: "text/javascript", css: "text/css", svg: "image/svg+xml" };
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
  "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; " +
  "trusted-types 'none'";

export function serve(folder, port = Number(process.env.PORT ?? 5173)) {
  const target = new URL(process.env.ROLLMILL_URL ?? "http://127.0.0.1:8080");
  const server = createServer(async (incoming, answer) => {
    const path = new URL(incoming.url, "http://localhost").pathname;
    if (path === "/") return page(folder, target, answer);
    if (path.startsWith("/assets/")) return file(folder, path, incoming, answer);
    const { method, headers, url } = incoming;
    const onward = request(target, { method, headers, path: url }, (response) => {
      answer.writeHead(response.statusCode, response.headers);
      response.pipe(answer);
    });
    onward.on("error", () => answer.writeHead(502).end());
    incoming.pipe(onward);
  });
  server.on("upgrade", (incoming, socket, head) => {
    const onward = connect(Number(target.port), target.hostname, () => {
      const lines = [`${incoming.method} ${incoming.url} HTTP/1.1`];
      const raw = incoming.rawHeaders;
      for (let i = 0; i < raw.length; i += 2) lines.push(`${raw[i]}: ${raw[i + 1]}`);
      onward.write(`${lines.join("\r\n")}\r\n\r\n`);
      onward.write(head);
      socket.pipe(onward).pipe(socket);
    });
    onward.on("error", () => socket.destroy());
    socket.on("error", () => onward.destroy());
  });
  server.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${port} for ${target.href}`));
  return server;
}

/** The page says whether a key is needed, as the server would. */
async function page(folder, target, answer) {
  const asked = await fetch(new URL("/v1/metrics?limit=1", target)).catch(() => null);
  const html = await readFile(`${folder}/index.html`, "utf8");
  const headers = { "content-type": KINDS.html, "content-security-policy": POLICY };
  answer.writeHead(200, headers);
  answer.end(asked?.status === 401 ? html.replace('"unneeded"', '"needed"') : html);
}

/** Packed if the browser takes it, as the server sends it. */
async function file(folder, path, incoming, answer) {
  const kind = KINDS[path.slice(path.lastIndexOf(".") + 1)];
  const headers = { "content-type": kind, "content-security-policy": POLICY };
  const takesGzip = /\bgzip\b/.test(incoming.headers["accept-encoding"] ?? "");
  const packed = takesGzip ? await readFile(`${folder}${path}.gz`).catch(() => null) : null;
  try {
    const bytes = packed ?? (await readFile(`${folder}${path}`));
    answer.writeHead(200, packed ? { ...headers, "content-encoding": "gzip" } : headers).end(bytes);
  } catch {
    answer.writeHead(404).end();
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) serve("dist");
