// The server's messages as one state, and what becomes of it when they stay away.

import { withSecond } from "./history";
import type { History, ViewMessage } from "./messages";

/** `lost_since_ms`: when the last message came, if they have stayed away since; else null. */
export interface State {
  view: ViewMessage;
  history: History;
  lost_since_ms: number | null;
}

const LOST_AFTER_MS = 3500;
const RETRY_MS = 3000;
const RENEW_AFTER_MS = 10_000; // a connection that has lost its other end stays open without a word

/** Listen for ever; `show` is called with each new state, null while nothing ever came. */
export function listen(show: (state: State | null) => void): void {
  let state: State | null = null;
  let heardAt = Date.now();
  let openedAt = heardAt;
  let asking = false;
  let source: EventSource | null = null;

  const open = () => {
    openedAt = Date.now();
    source = new EventSource("/api/stream");
    source.addEventListener("view", (event) => {
      const view = JSON.parse((event as MessageEvent<string>).data) as ViewMessage;
      const history = view.history ?? (state && withSecond(state.history, view));
      if (history === null) return;
      heardAt = Date.now();
      state = { view, history, lost_since_ms: null };
      show(state);
    });
    source.addEventListener("error", () => {
      // The browser comes back by itself, unless the server answered with an error.
      if (source?.readyState === EventSource.CLOSED) setTimeout(reopen, RETRY_MS);
    });
  };

  const reopen = async () => {
    if (asking) return;
    asking = true;
    source?.close();
    const ask = (path: string, method: string) =>
      fetch(path, { method, cache: "no-store", signal: AbortSignal.timeout(RETRY_MS) }).catch(() => null);
    const answer = await ask("/healthz", "GET");
    const allowed = answer?.ok ? await ask("/api/view", "HEAD") : null;
    asking = false;
    if (allowed?.status === 401) location.reload(); // it asks for the token there
    else open();
  };

  setInterval(() => {
    const silentMs = Date.now() - heardAt;
    if (silentMs < LOST_AFTER_MS) return;
    if (state === null) show(null);
    else show((state = { ...state, lost_since_ms: heardAt }));
    if (Math.min(silentMs, Date.now() - openedAt) > RENEW_AFTER_MS) void reopen();
  }, 1000);
  open();
}
