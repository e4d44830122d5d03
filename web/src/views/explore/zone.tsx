import { isZone } from "../../lib/time.ts";
import { Combobox } from "../../ui/combobox.tsx";

const SUGGESTED = 40;

/** Time zones by any part of their name; the reader's own first. */
export function ZoneField({ id, value, onPick }: { id: string; value: string; onPick(zone: string): void }) {
  const load = async (text: string) => {
    const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const zones = [...new Set(["UTC", own, ...Intl.supportedValuesOf("timeZone")])];
    const wanted = text.toLowerCase().replaceAll(" ", "_");
    return zones.filter((zone) => zone.toLowerCase().includes(wanted)).slice(0, SUGGESTED).map((zone) => ({ value: zone }));
  };
  return (
    <div class="zone">
      <Combobox inputId={id} label="Time zone" value={value} load={load} onPick={(zone) => isZone(zone) && onPick(zone)} />
    </div>
  );
}
