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

/** Listen for ever; `show` is called with each new state, null while nothing ever came. */
export function listen(show: (state: State | null) => void): void {
  let state: State | null = null;
  let heardAt = Date.now();
  let source: EventSource | null = null;

  const open = () => {
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
    const answer = await fetch("/healthz", { cache: "no-store" }).catch(() => null);
    const allowed = answer?.ok && (await fetch("/api/view", { method: "HEAD" }).catch(() => null));
    if (allowed && allowed.status === 401) location.reload(); // it asks for the token there
    else open();
  };

  setInterval(() => {
    if (Date.now() - heardAt < LOST_AFTER_MS) return;
    if (state === null) show(null);
    else show((state = { ...state, lost_since_ms: heardAt }));
  }, 1000);
  open();
}
