/** Filters by labels, with values that are really there as suggestions. */
import { useRef, useState } from "preact/hooks";
import { api } from "../../api/client.ts";
import { type Matcher, OPERATORS, type Operator } from "../../lib/matchers.ts";
import { Combobox } from "../../ui/combobox.tsx";
import { useId } from "../../ui/hooks.ts";
import { Options } from "./form.tsx";

interface Props {
  metric: string;
  labels: string[];
  matchers: Matcher[];
  onChange(matchers: Matcher[]): void;
}

const MEANINGS: Record<Operator, string> = {
  "=": "is",
  "!=": "is not",
  "=~": "matches",
  "!~": "does not match",
};

export function Filters({ metric, labels, matchers, onChange }: Props) {
  const id = useId("filter");
  const [draft, setDraft] = useState<{ label: string; operator: Operator } | null>(null);
  // The two fields take turns, so the focus has to be handed on.
  const wasUsed = useRef(false);
  const loadLabels = async (text: string) =>
    labels.filter((label) => label.startsWith(text)).map((value) => ({ value }));
  const loadValues = async (text: string, signal: AbortSignal) => {
    const found = await api.labelValues(draft?.label ?? "", { metric, prefix: text, limit: 50 }, signal);
    return found.values.map((value) => ({ value }));
  };
  const startDraft = (label: string) => {
    wasUsed.current = true;
    setDraft({ label, operator: "=" });
  };
  const take = (value: string) => {
    if (draft) onChange([...matchers, { ...draft, value }]);
    setDraft(null);
  };
  return (
    <div class="field">
      <label for={id}>Filters</label>
      <div class="inline">
        {matchers.map((matcher, i) => (
          <span key={i} class="chip">
            <span class="text mono">
              {matcher.label} {matcher.operator} {matcher.value || '""'}
            </span>
            <button type="button" class="drop" aria-label={`Remove the filter ${matcher.label} ${MEANINGS[matcher.operator]} ${matcher.value}`} onClick={() => onChange(matchers.filter((_, other) => other !== i))}>
              ×
            </button>
          </span>
        ))}
        {draft ? (
          <span class="matcher-form">
            <span class="mono">{draft.label}</span>
            <select class="select" aria-label="Operator" value={draft.operator} onChange={(event) => setDraft({ ...draft, operator: event.currentTarget.value as Operator })}>
              <Options choices={OPERATORS.map((value) => ({ value }))} />
            </select>
            <Combobox key={draft.label} inputId={id} label={`Value of ${draft.label}`} value="" isFree isCleared takesFocus="with list" placeholder="Value" load={loadValues} onPick={take} />
            <button type="button" class="button small quiet" onClick={() => setDraft(null)}>
              Cancel
            </button>
          </span>
        ) : (
          <Combobox key="label" inputId={id} label="Label to filter by" value="" isCleared takesFocus={wasUsed.current ? "without list" : undefined} placeholder={matchers.length > 0 ? "Add a filter" : "No filters"} among={labels} load={loadLabels} onPick={startDraft} />
        )}
      </div>
    </div>
  );
}
