/** Small parts that every view is made of. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import type { Failure } from "../api/failure.ts";
import { duration } from "../lib/format.ts";
import { useId } from "./hooks.ts";

export type Tone = "good" | "warn" | "bad" | "info";

export function Badge({ tone, dot, children }: { tone?: Tone; dot?: boolean; children: ComponentChildren }) {
  return <span class={`badge ${tone ?? ""} ${dot ? "dot" : ""}`}>{children}</span>;
}

export function Notice({ tone, title, children }: { tone?: Tone; title?: string; children?: ComponentChildren }) {
  return (
    <div class={`notice ${tone ?? ""}`} role={tone === "bad" ? "alert" : "status"}>
      <div>
        {title && <strong>{title} </strong>}
        {children}
      </div>
    </div>
  );
}

const TITLES: Record<number, string> = {
  0: "No answer.",
  403: "This key may not do that.",
  422: "Too much is asked for.",
  429: "Too many requests of this tenant.",
  503: "The server is busy.",
};

/** An error as the server words it, and what can be done here. What has a `retry` retries by itself too. */
export function FailureNotice({ failure, retry }: { failure: Failure; retry?: () => void }) {
  return (
    <div class="notice bad" role="alert">
      <div>
        <strong>{TITLES[failure.status] ?? "The server refused."}</strong> {failure.message}{" "}
        <code>{failure.code}</code>
        {failure.retryAfter !== null && <> {retry ? "The page tries again in" : "Try again in"} {duration(failure.retryAfter * 1000)}.</>}
      </div>
      {retry && (
        <button type="button" class="button small" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Panel({ title, actions, children, flush, isLoading }: {
  title?: ComponentChildren;
  actions?: ComponentChildren;
  children: ComponentChildren;
  /** Without space around what is in it, as for tables. */
  flush?: boolean;
  isLoading?: boolean;
}) {
  return (
    <section class="panel loading" aria-busy={isLoading ?? false}>
      {isLoading && <div class="bar-line" />}
      {(title || actions) && (
        <header class="panel-head">
          <h2>{title}</h2>
          {actions}
        </header>
      )}
      <div class={flush ? "" : "body"}>{children}</div>
    </section>
  );
}

export function Field({ label, children }: { label: string; children: (id: string) => ComponentChildren }) {
  const id = useId("field");
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(id)}
    </div>
  );
}

export interface Choice<T extends string> {
  value: T;
  name?: string;
  isDisabled?: boolean;
  title?: string;
}

/** One of a few, all of which are seen. */
export function Segments<T extends string>({ legend, value, choices, onChange }: {
  legend: string;
  value: T | null;
  choices: Choice<T>[];
  onChange(value: T): void;
}) {
  const name = useId("segments");
  return (
    <div class="segments" role="radiogroup" aria-label={legend}>
      {choices.map((choice) => (
        <label key={choice.value} title={choice.title}>
          <input
            type="radio"
            name={name}
            value={choice.value}
            checked={choice.value === value}
            disabled={choice.isDisabled}
            // Also a click on what is chosen: a quick range ends a fixed one.
            onChange={() => onChange(choice.value)}
          />
          {choice.name ?? choice.value}
        </label>
      ))}
    </div>
  );
}

/** Copies a text, and says that it did. */
export function CopyButton({ text, name = "Copy", quiet }: { text: () => string; name?: string; quiet?: boolean }) {
  const [state, setState] = useState<"idle" | "done" | "failed">("idle");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      setState("done");
    } catch {
      setState("failed");
    }
    setTimeout(() => setState("idle"), 1600);
  };
  const shown = { idle: name, done: "Copied", failed: "Could not copy" }[state];
  return (
    <button type="button" class={`button small ${quiet ? "quiet" : ""}`} onClick={copy} aria-live="polite">
      {shown}
    </button>
  );
}

export function Code({ text }: { text: string }) {
  return (
    <div class="code">
      <pre tabIndex={0}>{text}</pre>
      <CopyButton text={() => text} />
    </div>
  );
}

/** How much of a limit is in use. */
export function Meter({ used, total, label }: { used: number; total: number; label: string }) {
  const share = total > 0 ? Math.min(used / total, 1) : 0;
  return (
    <svg class={`meter ${share > 0.9 ? "high" : ""}`} viewBox="0 0 100 6" preserveAspectRatio="none" role="meter" aria-label={label} aria-valuenow={used} aria-valuemin={0} aria-valuemax={Math.max(total, 1)}>
      <rect width={share * 100} height="6" />
    </svg>
  );
}

export function Tile({ name, tone, under, children }: { name: string; tone?: Tone; under?: ComponentChildren; children: ComponentChildren }) {
  return (
    <div class="tile">
      <dt>{name}</dt>
      <dd class={tone ?? ""}>
        {children}
        {under && <div class="under">{under}</div>}
      </dd>
    </div>
  );
}
