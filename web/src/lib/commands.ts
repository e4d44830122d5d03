/** Commands for a shell that ask the same as the page. */
import { address, type Params } from "../api/client.ts";

/** Quotes a word for a POSIX shell, where it has to be. */
export function shellWord(word: string): string {
  if (/^[A-Za-z0-9_@%+=:,./-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", "'\\''")}'`;
}

/** `$ROLLMILL_KEY` stands for the key: a copied command must not carry it along. */
const KEY_HEADER = `-H "authorization: Bearer $ROLLMILL_KEY"`;

export function curlCommand(origin: string, params: Params, withKey: boolean): string {
  const url = shellWord(`${origin}${address("/v1/query", params)}`);
  return ["curl", ...(withKey ? [KEY_HEADER] : []), url].join(" ");
}

export function cliCommand(origin: string, { metric, ...params }: Params): string {
  const words = ["rollmill", "query", String(metric)];
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== "") words.push(`--${name}`, String(value));
  }
  if (origin !== "http://127.0.0.1:8080") words.push("--url", origin);
  return words.map(shellWord).join(" ");
}

export interface FirstEvent {
  metric: string;
  labels: Record<string, string>;
  user: string;
}

/** How to send an event, in several languages. */
export function sendCommands(origin: string, event: FirstEvent, withKey: boolean) {
  const body = JSON.stringify(event);
  return {
    curl: [
      `curl ${origin}/v1/events \\`,
      ...(withKey ? [`  ${KEY_HEADER} \\`] : []),
      "  -H 'content-type: application/json' \\",
      `  -d ${shellWord(body)}`,
    ].join("\n"),
    JavaScript: [
      `await fetch("${origin}/v1/events", {`,
      '  method: "POST",',
      "  headers: {",
      '    "content-type": "application/json",',
      ...(withKey ? ['    authorization: `Bearer ${process.env.ROLLMILL_KEY}`,'] : []),
      "  },",
      `  body: JSON.stringify(${body}),`,
      "});",
    ].join("\n"),
    Python: [
      "import json, os, urllib.request",
      "",
      'headers = {"content-type": "application/json"}',
      ...(withKey ? ['headers["authorization"] = "Bearer " + os.environ["ROLLMILL_KEY"]'] : []),
      `event = ${body}`,
      "request = urllib.request.Request(",
      `    "${origin}/v1/events", json.dumps(event).encode(), headers)`,
      "print(urllib.request.urlopen(request).read())",
    ].join("\n"),
  };
}
