import { Combobox } from "../../ui/combobox.tsx";
import { useId } from "../../ui/hooks.ts";

/** The labels to group by, in order. */
export function Groups({ labels, chosen, onChange }: { labels: string[]; chosen: string[]; onChange(by: string[]): void }) {
  const id = useId("groups");
  const load = async (text: string) =>
    labels.filter((label) => !chosen.includes(label) && label.startsWith(text)).map((value) => ({ value }));
  return (
    <div class="field">
      <label for={id}>Group by</label>
      <div class="inline">
        {chosen.map((label) => (
          <span key={label} class="chip">
            <span class="text">{label}</span>
            <button type="button" class="drop" aria-label={`Do not group by ${label}`} onClick={() => onChange(chosen.filter((other) => other !== label))}>
              ×
            </button>
          </span>
        ))}
        <Combobox inputId={id} label="Group by" value="" placeholder={chosen.length > 0 ? "Add a label" : "No groups"} isCleared among={labels} load={load} onPick={(label) => !chosen.includes(label) && onChange([...chosen, label])} />
      </div>
    </div>
  );
}
