/** The API key of this tab. It is never in a URL, and is gone when the tab is closed. */

const NAME = "rollmill.key";
let listeners: (() => void)[] = [];

export function currentKey(): string | null {
  return sessionStorage.getItem(NAME);
}

export function setKey(key: string | null): void {
  if (key === null) sessionStorage.removeItem(NAME);
  else sessionStorage.setItem(NAME, key);
  for (const listener of listeners) listener();
}

/** Calls back whenever the key changes; returns how to stop that. */
export function onKeyChange(listener: () => void): () => void {
  listeners.push(listener);
  return () => {
    listeners = listeners.filter((other) => other !== listener);
  };
}
