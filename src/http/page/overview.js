// Consumers and exports, and how often each is asked for. The consumers stay as they are while the exports below them are filtered,
// or one is looked at.

import { Problem, get } from "./api.js";
import { consumersSection } from "./consumers.js";
import { el, keyed, show, text } from "./dom.js";
import { now } from "./figures.js";
import { SOON_MS, jobsSection } from "./jobs.js";
import { wake } from "./pulse.js";

// Exports that are open move; all else changes rarely, and what waits for consumers costs the database a count.
const OPEN_SECONDS = 1.5;
const QUIET_SECONDS = 10;
const AGAIN_SECONDS = 5;
const FILTERS = ["consumer", "status", "exportType", "dataset"];

const consumers = consumersSection();
const unready = el("ul", { class: "notice", hidden: true, "aria-label": "Datasets that can't be exported now" });
let datasets = [];
let jobs = null;
let trouble = null;
let arrive = null;

const besides = {
  consumers: { seconds: 15, nextAt: 0, lookedAt: 0, look: aside(consumers.refresh, consumers.complain) },
  datasets: { seconds: 60, nextAt: 0, lookedAt: 0, look: aside(lookAtDatasets, () => {}) },
};

// What looks into the tables takes its time where one is locked or large: it doesn't hold the exports up, and says itself what it
// can't tell. All other trouble is the connection's. Gives the seconds until it wants to be asked again, if it has a wish.
function aside(work, complain) {
  let busy = false;
  return async (signal) => {
    if (busy) return 1;
    busy = true;
    try {
      await work(signal);
      complain(null);
      return null;
    } catch (error) {
      if (signal.aborted) return 0;
      if (error instanceof Problem && error.status >= 500 && error.code !== "database_unavailable") {
        complain(error);
        return AGAIN_SECONDS;
      }
      trouble = error;
      wake();
      return 0;
    } finally {
      busy = false;
    }
  };
}

async function lookAtDatasets(signal) {
  const { items } = await get("/datasets", {}, signal);
  datasets = items.map(({ name }) => name);
  jobs.datasets(datasets);
  const broken = items.filter(({ ready }) => !ready);
  show(unready, broken.length > 0);
  keyed(unready, broken, ({ name }) => name, () => {
    const line = el("li", {});
    return { node: line, update: ({ name, problems }) => text(line, `The dataset ${name} can't be exported now: ${problems.join("; ")}`) };
  });
}

async function beat(signal) {
  if (trouble !== null) {
    const told = trouble;
    trouble = null;
    throw told;
  }
  const { moves, ended } = await jobs.refresh(signal);
  arrive?.();
  arrive = null;
  const { consumers: standing } = besides;
  if (ended) standing.nextAt = Math.min(standing.nextAt, standing.lookedAt + SOON_MS);
  for (const one of Object.values(besides)) {
    if (now() < one.nextAt) continue;
    one.lookedAt = now();
    // The beats are not quite regular.
    one.nextAt = now() + one.seconds * 1000 - 500;
    one.look(signal).then((wish) => {
      if (wish === null) return;
      one.nextAt = now() + wish * 1000;
      if (wish > 0) setTimeout(wake, wish * 1000);
    });
  }
  return moves || standing.nextAt - now() < SOON_MS ? OPEN_SECONDS : QUIET_SECONDS;
}

export function overview(query) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  jobs = jobsSection(filter, (changed) => {
    const asked = new URLSearchParams(Object.entries(changed).filter(([, value]) => value !== "")).toString();
    location.hash = asked ? `#/?${asked}` : "#/";
  });
  jobs.datasets(datasets);
  const heading = el("h1", { class: "unseen" }, "Consumers and exports");
  const node = el("div", {}, heading, unready, consumers.node, jobs.node);
  // Who follows a link to some exports wants to be there, once they are.
  const filtered = Object.values(filter).some(Boolean);
  arrive = filtered ? () => jobs.heading.scrollIntoView() : null;
  return { node, heading: filtered ? jobs.heading : heading, beat, title: "cdc-export" };
}
