/** The frame around every view, and who may see it. */
import { useEffect } from "preact/hooks";
import { api } from "./api/client.ts";
import { setKey } from "./api/key.ts";
import { go, useAddress, useKey, useLoaded } from "./ui/hooks.ts";
import { Icon, Logo } from "./ui/icons.tsx";
import { Empty, FailureNotice } from "./ui/parts.tsx";
import { Boards } from "./views/boards/boards.tsx";
import { Explore } from "./views/explore/explore.tsx";
import { Live } from "./views/live/live.tsx";
import { Operate } from "./views/operate/operate.tsx";
import { SignIn } from "./views/sign-in.tsx";
import { Start } from "./views/start/start.tsx";

const VIEWS = [
  { path: "/explore", name: "Explore", icon: "explore", view: Explore },
  { path: "/live", name: "Live", icon: "live", view: Live },
  { path: "/boards", name: "Boards", icon: "boards", view: Boards },
  { path: "/operate", name: "Operate", icon: "operate", view: Operate },
  { path: "/start", name: "Start", icon: "start", view: Start },
] as const;

export function App() {
  const key = useKey();
  const { path } = useAddress();
  // Also says whether a key is needed, and whether there is anything to show.
  const isForbidden = key === null && needsSignIn();
  const probe = useLoaded(
    (signal) => (isForbidden ? Promise.resolve(null) : api.metrics({ limit: 1 }, signal)),
    [key],
  );
  const isEmpty = probe.value?.metrics.length === 0;
  const isKnown = VIEWS.some((view) => path.startsWith(view.path));
  const needsKey = isForbidden || (probe.failure?.isAboutKey ?? false);

  useEffect(() => {
    if (probe.value && !isKnown) go(isEmpty ? "/start" : "/explore", undefined, true);
  }, [probe.value, isKnown]);

  const current = VIEWS.find((view) => path.startsWith(view.path));
  useTitle(needsKey ? "Sign in" : current?.name);
  if (needsKey) return <SignIn />;
  return (
    <div class="shell">
      <a class="skip" href="#main" onClick={skip}>
        Skip to the content
      </a>
      <Side path={current?.path ?? ""} hasKey={key !== null} />
      <main id="main" class="main" tabIndex={-1}>
        {current && (probe.value || probe.failure) && <current.view key={current.path} />}
        {!current && probe.failure && <FailureNotice failure={probe.failure} retry={probe.reload} />}
        {!current && !probe.failure && <Empty title="Loading" />}
      </main>
    </div>
  );
}

function Side({ path, hasKey }: { path: string; hasKey: boolean }) {
  return (
    <header class="side">
      <a class="brand" href="#/explore" aria-label="Rollmill">
        <Logo />
        <span>Rollmill</span>
      </a>
      <nav class="nav" aria-label="Views">
        {VIEWS.map((view) => (
          <a key={view.path} href={`#${view.path}`} aria-current={view.path === path ? "page" : undefined}>
            <Icon name={view.icon} />
            {view.name}
          </a>
        ))}
      </nav>
      <div class="side-foot nav">
        <a class="wide" href="/docs/README.md">
          <Icon name="docs" />
          Docs
        </a>
        {hasKey && (
          <a
            href="#/explore"
            onClick={(event) => {
              event.preventDefault();
              setKey(null);
            }}
          >
            <Icon name="out" />
            Sign out
          </a>
        )}
      </div>
    </header>
  );
}

/** The server says so in the page, which saves a request that would be refused. */
function needsSignIn(): boolean {
  const meta = document.querySelector<HTMLMetaElement>('meta[name="rollmill-sign-in"]');
  return meta?.content === "needed";
}

function useTitle(name: string | undefined): void {
  useEffect(() => {
    document.title = name ? `${name} – Rollmill` : "Rollmill";
  }, [name]);
}

function skip(event: MouseEvent): void {
  // The address keeps the view, so the link may not change it.
  event.preventDefault();
  document.getElementById("main")?.focus();
}
