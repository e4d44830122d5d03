import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { asFailure, type Failure } from "../api/failure.ts";
import { type Again, waitAfter, waitAfterFailure } from "../lib/again.ts";
import { currentKey, onKeyChange, setKey } from "../api/key.ts";

export interface Loaded<T> {
  /** The newest answer; kept while the next one is asked for, and when that fails. */
  value: T | null;
  failure: Failure | null;
  isLoading: boolean;
  /** Whether the value answers the present inputs, and not those before. */
  isCurrent: boolean;
  reload(): void;
}

/**
 * Asks whenever `inputs` change, again as `again` says, and ends the request before. Where the
 * server says when to retry, it is asked again then. A failure about the key signs out.
 */
export function useLoaded<T>(
  ask: (signal: AbortSignal) => Promise<T>,
  inputs: unknown[],
  again?: Again<T>,
): Loaded<T> {
  const [state, setState] = useState<{ value: T | null; of: string; failure: Failure | null; isLoading: boolean }>({
    value: null,
    of: "",
    failure: null,
    isLoading: true,
  });
  const [round, setRound] = useState(0);
  const latest = useRef({ ask, again });
  latest.current = { ask, again };
  const hash = JSON.stringify(inputs);
  const lastHash = useRef(hash);

  useEffect(() => {
    const ending = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const isRepeat = lastHash.current === hash && round > 0;
    lastHash.current = hash;
    if (!isRepeat) setState((old) => ({ ...old, isLoading: true }));
    const run = async () => {
      let wait: number | undefined;
      try {
        const value = await latest.current.ask(ending.signal);
        if (ending.signal.aborted) return;
        setState({ value, of: hash, failure: null, isLoading: false });
        wait = waitAfter(value, latest.current.again);
      } catch (thrown) {
        if (ending.signal.aborted) return;
        const failure = asFailure(thrown);
        if (failure.isAboutKey) setKey(null);
        setState((old) => ({ ...old, failure, isLoading: false }));
        wait = waitAfterFailure(failure, latest.current.again);
      }
      if (wait) timer = setTimeout(run, wait);
    };
    void run();
    return () => {
      ending.abort();
      clearTimeout(timer);
    };
  }, [hash, round]);

  const reload = useCallback(() => setRound((n) => n + 1), []);
  const { value, failure, isLoading } = state;
  return { value, failure, isLoading, isCurrent: state.of === hash, reload };
}

/** The present, renewed every `everyMs`. */
export function useNow(everyMs: number): number {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
  return now;
}

export function useKey(): string | null {
  const [key, set] = useState(currentKey());
  useEffect(() => onKeyChange(() => set(currentKey())), []);
  return key;
}

/** The part of the address behind the `#`, as path and parameters. */
export function useAddress(): { path: string; params: URLSearchParams } {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const listener = () => setHash(location.hash);
    addEventListener("hashchange", listener);
    return () => removeEventListener("hashchange", listener);
  }, []);
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?", 2);
  return { path, params: new URLSearchParams(query) };
}

/** Goes to another address; `replace` leaves no entry to go back to. */
export function go(path: string, params?: URLSearchParams, replace = false): void {
  const query = params?.toString();
  const hash = `#${path}${query ? `?${query}` : ""}`;
  if (replace) {
    history.replaceState(null, "", hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = hash;
  }
}

let ids = 0;

/** An id for this element, the same as long as it stands. */
export function useId(prefix: string): string {
  const id = useRef("");
  if (!id.current) id.current = `${prefix}-${++ids}`;
  return id.current;
}

/** Whether the reader prefers a dark page; changes with the system. */
export function useDark(): boolean {
  const query = "(prefers-color-scheme: dark)";
  const [isDark, set] = useState(matchMedia(query).matches);
  useEffect(() => {
    const media = matchMedia(query);
    const listener = () => set(media.matches);
    media.addEventListener("change", listener);
    return () => media.removeEventListener("change", listener);
  }, []);
  return isDark;
}
