// When the page asks the service for something: quietly, not at all while nobody looks, and ever more rarely while it gives no
// answer. Whatever a view asks for begins here, so that one failure is one wait.

import { Problem, Unreachable, hasKey } from "./api.js";
import { now } from "./figures.js";

// Exports that are open move; all else changes rarely, and what waits for consumers costs the database a count.
export const OPEN_SECONDS = 1.5;
export const QUIET_SECONDS = 10;
export const DATASET_SECONDS = 60;
// How long the page waits for a service that gives no answer, each time longer.
const BACKOFF_SECONDS = [1, 2, 4, 8, 15, 30];
// A limit of requests makes the page slower by up to this.
const SLOWEST = 16;

let beat = async () => 60;
let stop = new AbortController();
let timer = 0;
let failures = 0;
let notBefore = 0;
let running = false;
let again = false;
let pace = 1;
let quiet = 0;

// What is known: `state` is one of connecting, ok, unreachable, unwell, limited, locked, refused.
export const health = new EventTarget();
Object.assign(health, { state: "connecting", since: null, seen: null, error: null, nextAt: null });

function become(state, error, seconds) {
  if (state !== health.state) health.since = now();
  Object.assign(health, { state, error, nextAt: seconds === null ? null : Date.now() + seconds * 1000 });
  health.dispatchEvent(new Event("change"));
}

// Shows another view: what the one before still asks for is dropped. A view's beat gives the seconds until its next one; one that
// takes its time says `alive` whenever it has heard something.
export function show(view) {
  stop.abort();
  stop = new AbortController();
  beat = view;
  wake();
}

// Asks now, unless the service has said to wait.
export function wake() {
  if (running) {
    again = true;
    return;
  }
  clearTimeout(timer);
  const wait = notBefore - Date.now();
  if (wait > 0) timer = setTimeout(wake, wait);
  else if (!document.hidden) turn();
}

function alive(signal) {
  if (signal.aborted) return;
  failures = 0;
  health.seen = now();
  become("ok", null, null);
}

async function turn() {
  const { signal } = stop;
  running = true;
  again = false;
  let seconds;
  try {
    seconds = (await beat(signal, () => alive(signal))) * pace;
    alive(signal);
    if (++quiet > 20 && pace > 1) [pace, quiet] = [pace / 2, 0];
  } catch (error) {
    if (!signal.aborted) seconds = failed(error);
  }
  running = false;
  if (signal.aborted || again) wake();
  else if (seconds !== null) timer = setTimeout(wake, seconds * 1000);
}

// How long to wait; null: until somebody does something.
function failed(error) {
  const back = BACKOFF_SECONDS[Math.min(failures, BACKOFF_SECONDS.length - 1)];
  if (error instanceof Unreachable) {
    failures++;
    become("unreachable", error, back);
    return back;
  }
  if (!(error instanceof Problem)) {
    // A defect of the page itself: to be seen where its developers look.
    queueMicrotask(() => {
      throw error;
    });
    failures++;
    return back;
  }
  switch (error.status) {
    case 401:
      become("locked", error, null);
      return null;
    case 403:
      become("refused", error, 60);
      return 60;
    case 429: {
      const seconds = error.retryAfter ?? back;
      notBefore = Date.now() + seconds * 1000;
      [pace, quiet] = [Math.min(pace * 2, SLOWEST), 0];
      become("limited", error, seconds);
      return seconds;
    }
    default: {
      failures++;
      const seconds = Math.max(error.retryAfter ?? 0, back);
      become("unwell", error, seconds);
      return seconds;
    }
  }
}

// A view that somebody looks at again is asked at once; one that nobody sees is not asked, and follows nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    stop.abort();
    stop = new AbortController();
  } else if (health.state !== "locked" || hasKey()) {
    wake();
  }
});
