/** A text field with suggestions, after the pattern of WAI-ARIA: one for metrics, labels, values. */
import { useEffect, useRef, useState } from "preact/hooks";
import { asFailure } from "../api/failure.ts";
import { useId } from "./hooks.ts";

export interface Suggestion {
  value: string;
  hint?: string;
}

interface Props {
  label: string;
  value: string;
  placeholder?: string;
  /** Suggestions for what is typed. */
  load(text: string, signal: AbortSignal): Promise<Suggestion[]>;
  /** What `load` chooses from, if that may become known while the field is open. */
  among?: string[];
  onPick(value: string): void;
  /** Whether what is typed may be taken although it is not suggested. */
  isFree?: boolean;
  /** Whether the field is emptied when something is picked. */
  isCleared?: boolean;
  inputId?: string;
  /** Whether it takes the focus when it appears in the place of a field that had it. */
  takesFocus?: "with list" | "without list";
}

const TYPING_PAUSE_MS = 120;

export function Combobox(props: Props) {
  const list = useId("list");
  const [text, setText] = useState<string | null>(null);
  const [isOpen, setOpen] = useState(false);
  const [active, setActive] = useState(-1);
  const suggestions = useSuggestions(props.load, isOpen, text ?? "", props.among?.join());
  const input = useRef<HTMLInputElement>(null);
  const items = suggestions.items;

  useEffect(() => {
    if (!props.takesFocus) return;
    input.current?.focus();
    setOpen(props.takesFocus === "with list");
  }, []);

  const close = () => {
    setOpen(false);
    setActive(-1);
    setText(null);
  };
  const pick = (value: string) => {
    close();
    props.onPick(value);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      setOpen(true);
      if (items.length > 0) setActive((active + step + items.length) % items.length);
      else setActive(-1);
    } else if (event.key === "Enter") {
      const chosen = items[active]?.value ?? exactly(items, text) ?? (props.isFree ? text : null);
      const value = chosen ?? (isOpen && text ? items[0]?.value : undefined);
      if (value) {
        event.preventDefault();
        pick(value);
      }
    } else if (event.key === "Escape" && isOpen) {
      event.preventDefault();
      close();
    }
  };

  return (
    <div class="combo">
      <input
        ref={input}
        id={props.inputId}
        class="input"
        role="combobox"
        aria-label={props.inputId ? undefined : props.label}
        aria-expanded={isOpen}
        aria-controls={list}
        aria-autocomplete="list"
        aria-activedescendant={active >= 0 ? `${list}-${active}` : undefined}
        autocomplete="off"
        spellcheck={false}
        placeholder={props.placeholder}
        value={text ?? (props.isCleared ? "" : props.value)}
        onFocus={() => setOpen(true)}
        onClick={() => setOpen(true)}
        onBlur={close}
        onInput={(event) => {
          setText(event.currentTarget.value);
          setActive(-1);
          setOpen(true);
        }}
        onKeyDown={onKeyDown}
      />
      <ul id={list} role="listbox" aria-label={props.label} class="combo-list" hidden={!isOpen || items.length === 0}>
        {items.map((item, i) => (
          <li
            key={item.value}
            id={`${list}-${i}`}
            role="option"
            aria-selected={i === active}
            ref={(element) => {
              if (element && i === active) element.scrollIntoView({ block: "nearest" });
            }}
            // Before the field loses the focus, which would close the list.
            onMouseDown={(event) => {
              event.preventDefault();
              pick(item.value);
            }}
          >
            <span>{item.value}</span>
            {item.hint && <span class="hint">{item.hint}</span>}
          </li>
        ))}
      </ul>
      {isOpen && items.length === 0 && suggestions.note && (
        <div class="combo-list combo-note" role="status">
          {suggestions.note}
        </div>
      )}
    </div>
  );
}

function exactly(items: Suggestion[], text: string | null): string | undefined {
  return items.find((item) => item.value === text)?.value;
}

function useSuggestions(load: Props["load"], isOpen: boolean, text: string, among?: string) {
  const [items, setItems] = useState<Suggestion[]>([]);
  const [note, setNote] = useState("");
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    if (!isOpen) return;
    const ending = new AbortController();
    const ask = async () => {
      try {
        const found = await latest.current(text, ending.signal);
        if (ending.signal.aborted) return;
        setItems(found);
        setNote(text ? `nothing begins with ${text}` : "there is nothing to suggest");
      } catch (thrown) {
        if (ending.signal.aborted) return;
        setItems([]);
        setNote(asFailure(thrown).message);
      }
    };
    const timer = setTimeout(ask, text ? TYPING_PAUSE_MS : 0);
    return () => {
      clearTimeout(timer);
      ending.abort();
    };
  }, [isOpen, text, among]);
  return { items, note };
}
