/** Asks for an API key, and tries it before it is kept. */
import { useState } from "preact/hooks";
import { asFailure, type Failure, failureOf } from "../api/failure.ts";
import { setKey } from "../api/key.ts";
import { Logo } from "../ui/icons.tsx";
import { FailureNotice, Field, Notice } from "../ui/parts.tsx";

/** A key of any scope may sign in; 403 says that it is one, without the scope to read. */
async function isKey(key: string): Promise<boolean> {
  const headers = { authorization: `Bearer ${key}` };
  const response = await fetch("/v1/metrics?limit=1", { headers, credentials: "omit", cache: "no-store" });
  if (response.status === 401) return false;
  if (response.ok || response.status === 403) return true;
  throw await failureOf(response);
}

export function SignIn() {
  const [text, setText] = useState("");
  const [isWrong, setWrong] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [isTrying, setTrying] = useState(false);
  const submit = async (event: Event) => {
    event.preventDefault();
    const key = text.trim();
    if (!key) return;
    setTrying(true);
    setFailure(null);
    try {
      const isRight = /^[\x21-\x7e]+$/.test(key) && (await isKey(key));
      setWrong(!isRight);
      if (isRight) setKey(key);
    } catch (thrown) {
      setFailure(asFailure(thrown));
    }
    setTrying(false);
  };
  return (
    <main class="sign-in">
      <div class="brand">
        <Logo />
        <h1>Rollmill</h1>
      </div>
      <div class="panel">
        <div class="body">
          <form onSubmit={submit}>
            <Field label="API key">
              {(id) => (
                <input id={id} class="input mono" type="password" autocomplete="off" spellcheck={false} autofocus required value={text} onInput={(event) => setText(event.currentTarget.value)} />
              )}
            </Field>
            {isWrong && <Notice tone="bad" title="Not a key.">The server does not know this key, or it has expired.</Notice>}
            {failure && <FailureNotice failure={failure} />}
            <button class="button primary" disabled={isTrying}>
              Sign in
            </button>
          </form>
        </div>
      </div>
      <p class="soft">
        The key stays in this tab and is forgotten when it is closed. It needs the scope <code>read</code>;
        Operate also needs <code>admin</code> or <code>operator</code>. To make one:
      </p>
      <pre class="mono soft">rollmill keys add --tenant shop --scopes read</pre>
    </main>
  );
}
