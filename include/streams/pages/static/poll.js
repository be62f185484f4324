// Keeps a page up to date: asks for a JSON document again and again, with the ETag of the version it has.

const EVERY_MS = 2000;
// A server that is away is asked less often, up to this.
const MAX_EVERY_MS = 10000;
const TIMEOUT_MS = 8000;

export class Failure extends Error {
  constructor(kind) {
    super(kind);
    // "unreachable", "logged_out", "missing" or "unavailable"
    this.kind = kind;
  }
}

// onData(document) for each new version; onAnswer({at, skewMs}) whenever the server has confirmed what is shown, `at`
// being the moment (ms) of that state; onFailure(Failure) when it has not. Returns a function that ends it.
export function poll(url, { onData, onAnswer, onFailure }) {
  let etag = null;
  let timer = 0;
  let failures = 0;
  let ended = false;

  async function ask() {
    clearTimeout(timer);
    if (ended) return;
    try {
      const headers = etag ? { "If-None-Match": etag } : {};
      const answer = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
      if (answer.status === 401 || answer.status === 403) throw new Failure("logged_out");
      if (answer.status === 404) throw new Failure("missing");
      if (!answer.ok && answer.status !== 304) throw new Failure("unavailable");
      const data = answer.status === 304 ? null : await answer.json();
      if (ended) return;
      if (data !== null) {
        onData(data);
        etag = answer.headers.get("ETag");
      }
      failures = 0;
      const date = Date.parse(answer.headers.get("Date"));
      const skewMs = Number.isNaN(date) ? 0 : date - Date.now();
      // The header has whole seconds: less than that is not skew.
      onAnswer({ at: Date.now() - 1000 * Number(answer.headers.get("Age") ?? 0), skewMs: Math.abs(skewMs) > 2000 ? skewMs : 0 });
    } catch (error) {
      if (ended) return;
      failures += 1;
      onFailure(error instanceof Failure ? error : new Failure("unreachable"));
    }
    timer = setTimeout(ask, Math.min(EVERY_MS * 2 ** Math.max(0, failures - 1), MAX_EVERY_MS));
  }

  // Timers of a hidden page are slowed down: who looks again must not see old data.
  const whenVisible = () => document.hidden || ask();
  document.addEventListener("visibilitychange", whenVisible);
  addEventListener("online", ask);
  ask();
  return () => {
    ended = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", whenVisible);
    removeEventListener("online", ask);
  };
}
