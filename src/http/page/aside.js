// What a view asks for beside its main question. What looks into the tables takes its time where one is locked or large: it doesn't
// hold the exports up, and says itself what it can't tell. All other trouble is the connection's.

import { Problem } from "./api.js";
import { el, show, text } from "./dom.js";
import { elapsed } from "./figures.js";
import { wake } from "./pulse.js";

// Where one export ends after the other, what follows from an end is asked for now and then.
export const SOON_MS = 4000;
export const AGAIN_SECONDS = 5;

// A place for what can't be told now and why, and the function that fills it.
export function untold(what) {
  const node = el("p", { class: "notice", hidden: true });
  const complain = (error) => {
    show(node, error !== null);
    text(node, error === null ? "" : `${what} can't be told now: ${error.message}`);
  };
  return { node, complain };
}

// `work` gives the seconds until it is to be done again; `complain` gets what it could not do, and null once it could.
export function aside(work, complain = () => {}) {
  let trouble = null;
  let lookedAt = 0;
  // Infinity while it is being done.
  let nextAt = 0;
  let wantedAt = Infinity;

  async function look(signal) {
    try {
      const seconds = await work(signal);
      complain(null);
      return seconds;
    } catch (error) {
      if (signal.aborted) return 0;
      if (error instanceof Problem && error.status >= 500 && error.code !== "database_unavailable") {
        complain(error);
        setTimeout(wake, AGAIN_SECONDS * 1000);
        return AGAIN_SECONDS;
      }
      trouble = error;
      wake();
      return 0;
    }
  }

  // Begins it where it is time to. Throws what it ran into the time before.
  function beat(signal) {
    if (trouble !== null) {
      const told = trouble;
      trouble = null;
      throw told;
    }
    if (elapsed() < nextAt) return;
    lookedAt = elapsed();
    [nextAt, wantedAt] = [Infinity, Infinity];
    // The beats are not quite regular.
    look(signal).then((seconds) => (nextAt = Math.min(wantedAt, elapsed() + seconds * 1000 - 500)));
  }

  // Something has changed: it is done before its time, but not all the time.
  function soon(pause = SOON_MS) {
    wantedAt = lookedAt + pause;
    if (nextAt < Infinity) nextAt = Math.min(nextAt, wantedAt);
  }
  return { beat, soon, isSoon: () => nextAt - elapsed() < SOON_MS };
}
