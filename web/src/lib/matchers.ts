/** Label matchers as in Prometheus: `{page=~"/blog/.*",country!="DE"}`. */

export type Operator = "=" | "!=" | "=~" | "!~";
export const OPERATORS: Operator[] = ["=", "!=", "=~", "!~"];

export interface Matcher {
  label: string;
  operator: Operator;
  value: string;
}

const ESCAPES: Record<string, string> = { n: "\n", t: "\t", r: "\r" };

function quote(value: string): string {
  const escaped = value.replace(/[\\"\n\t\r]/g, (c) => {
    const name = Object.entries(ESCAPES).find(([, character]) => character === c)?.[0];
    return `\\${name ?? c}`;
  });
  return `"${escaped}"`;
}

/** The text of the parameter `where`; empty if there are no matchers. */
export function printMatchers(matchers: Matcher[]): string {
  if (matchers.length === 0) return "";
  return `{${matchers.map((m) => `${m.label}${m.operator}${quote(m.value)}`).join(",")}}`;
}

/** Reads what `printMatchers` wrote; null if it is anything else. */
export function parseMatchers(text: string): Matcher[] | null {
  if (text === "") return [];
  const inner = /^\{([\s\S]*)\}$/.exec(text)?.[1];
  if (inner === undefined) return null;
  const one = /\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\[\s\S])*)"\s*(,|$)/y;
  const matchers: Matcher[] = [];
  while (one.lastIndex < inner.length) {
    const found = one.exec(inner);
    if (!found) return null;
    const [, label = "", operator, value = ""] = found;
    const unquoted = value.replace(/\\([\s\S])/g, (_, c: string) => ESCAPES[c] ?? c);
    matchers.push({ label, operator: operator as Operator, value: unquoted });
    if (found[4] === "") break;
  }
  return matchers;
}
