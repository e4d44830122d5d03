/** Operate: what administrators and operators see and do. */
import { useAddress } from "../../ui/hooks.ts";
import { Accounting } from "./accounting.tsx";
import { Cluster } from "./cluster.tsx";
import { Limits } from "./limits.tsx";
import { Quarantine } from "./quarantine.tsx";
import { Replays } from "./replays.tsx";

const TABS = [
  { path: "/operate", name: "Cluster", view: Cluster },
  { path: "/operate/accounting", name: "Accounting", view: Accounting },
  { path: "/operate/quarantine", name: "Quarantine", view: Quarantine },
  { path: "/operate/replays", name: "Replays", view: Replays },
  { path: "/operate/limits", name: "Limits", view: Limits },
];

export function Operate() {
  const { path } = useAddress();
  const current = TABS.find((tab) => tab.path === path) ?? TABS[0];
  return (
    <div class="view">
      <h1 class="hidden-text">Operate</h1>
      <nav class="tabs" aria-label="Operate">
        {TABS.map((tab) => (
          <a key={tab.path} href={`#${tab.path}`} aria-current={tab === current ? "page" : undefined}>
            {tab.name}
          </a>
        ))}
      </nav>
      {current && <current.view key={current.path} />}
    </div>
  );
}
