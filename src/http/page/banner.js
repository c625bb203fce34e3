// What the page knows of the connection, where it can't be overlooked: since when the service gives no answer, why, and when it is
// asked again. What is shown below is then marked as old.

import { say, set, show, text } from "./dom.js";
import { utc } from "./figures.js";
import { askForKey } from "./key.js";
import { health, wake } from "./pulse.js";
import { hint } from "./words.js";

const byId = (id) => document.getElementById(id);

function clock(at) {
  return `${new Date(at).toISOString().slice(11, 19)} UTC`;
}

const SAYS = {
  unreachable: () => [`Not reachable since ${clock(health.since)}.`, sentence(health.error.message)],
  unwell: () => {
    const database = health.error.code === "database_unavailable";
    const title = database ? `Its database is away since ${clock(health.since)}.` : "The service answers with an error.";
    const id = health.error.status === 500 && health.error.requestId ? ` (request ${health.error.requestId})` : "";
    return [title, sentence(health.error.message) + id];
  },
  limited: () => ["Too many requests.", `${sentence(health.error.message)} The page asks more rarely from now on.`],
  refused: () => ["Not allowed.", `${sentence(health.error.message)} ${hint(health.error)}`.trim()],
  locked: () => ["A key is needed.", health.error.code === "key_required" ? "" : sentence(health.error.message)],
};

function sentence(detail) {
  return /[.!?…]$/.test(detail) ? detail : `${detail}.`;
}

let told = "connecting";

function tellConnection() {
  const known = SAYS[health.state];
  show(byId("banner"), known);
  document.body.dataset.connection = health.state;
  const [title, detail] = known?.() ?? ["", ""];
  text(byId("banner-title"), title);
  text(byId("banner-text"), detail);
  text(byId("banner-again"), health.state === "locked" ? "Give a key" : "Try now");
  const stale = known !== undefined && health.seen !== null;
  document.body.classList.toggle("stale", stale);
  const seen = health.seen === null ? "" : clock(health.seen);
  const words = health.state === "connecting" ? "connecting" : stale ? `as of ${seen}` : health.state === "ok" ? "live" : "no data";
  text(byId("connection"), words);
  set(byId("connection"), "title", health.seen === null ? null : `last answer: ${utc(new Date(health.seen).toISOString())}`);
  countDown();
  // Once, and not at each further try.
  if (health.state !== told) {
    if (known) say(`${title} ${detail}`);
    else if (SAYS[told]) say("The service answers again.");
    told = health.state;
  }
  if (health.state === "locked") askForKey(health.error);
}

// Not said by a screen reader: it would do so each second.
export function countDown() {
  if (byId("banner").hidden) return;
  const seconds = health.nextAt === null ? null : Math.ceil((health.nextAt - Date.now()) / 1000);
  text(byId("banner-count"), seconds === null ? "" : seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again …");
}

export function watchConnection() {
  health.addEventListener("change", tellConnection);
  byId("banner-again").addEventListener("click", () => (health.state === "locked" ? askForKey(health.error) : wake()));
}
