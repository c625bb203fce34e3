// What somebody wants to know first: what runs, what failed and who needs a full export; then those exports, events that nobody has taken, the
// consumers and the schedules. It stays as it is while something else is looked at.

import { get } from "./api.js";
import { aside } from "./aside.js";
import { consumersSection } from "./consumers.js";
import { deliveriesSection } from "./deliveries.js";
import { el, keyed, show, text } from "./dom.js";
import { count } from "./figures.js";
import { presentSection } from "./present.js";
import { DATASET_SECONDS, OPEN_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { schedulesSection } from "./schedules.js";
import { continuity, isDataset } from "./words.js";

const present = presentSection();
const consumers = consumersSection();
const schedules = schedulesSection();
const deliveries = deliveriesSection();
const strip = el("ul", { class: "strip", "aria-label": "At a glance", hidden: true });
const unready = el("ul", { class: "notice", hidden: true, "aria-label": "Datasets that can't be exported now" });
const heading = el("h1", { class: "unseen" }, "Overview");
const node = el("div", {}, heading, strip, unready, present.node, deliveries.node, consumers.node, schedules.node);

async function lookAtConsumers(signal) {
  const seconds = await consumers.refresh(signal);
  present.failures(consumers.all().map(({ lastJob }) => lastJob).filter((job) => job?.status === "failed"));
  summarize();
  return seconds;
}

async function lookAtDatasets(signal) {
  const items = (await get("/datasets", {}, signal)).items.filter(isDataset);
  consumers.offer(items.map(({ name }) => name));
  const broken = items.filter(({ ready }) => !ready);
  show(unready, broken.length > 0);
  keyed(unready, broken, ({ name }) => name, () => {
    const line = el("li", {});
    return { node: line, update: ({ name, problems }) => text(line, `The dataset ${name} can't be exported now: ${problems.join("; ")}`) };
  });
  return DATASET_SECONDS;
}

const besides = [aside(lookAtConsumers, consumers.complain), aside(lookAtDatasets), aside(schedules.refresh), aside(deliveries.refresh)];

const NEEDS = { full: "a full export", incremental: "a full export before a delta" };

// The strip: how many there are of each kind, with a way to them.
function summarize() {
  const { running, waiting, failed } = present.counts();
  const needing = (needs) => {
    const number = consumers.all().filter((of) => continuity(of.continuity).needs === needs).length;
    return { number, isMore: !consumers.isAll(), says: `${number === 1 ? "needs" : "need"} ${NEEDS[needs]}`, to: consumers.heading };
  };
  const kinds = [
    { kind: "running", ...running, says: "running", to: present.heading },
    { kind: "notice", ...waiting, says: "waiting", to: present.heading },
    { kind: "bad", ...failed, says: "failed", to: present.heading },
    { kind: "bad needs", ...needing("full") },
    { kind: "warning", ...needing("incremental") },
  ].filter(({ number }) => number > 0);
  const all = [{ kind: "good" }];
  keyed(strip, kinds.length > 0 ? kinds : all, ({ kind }) => kind, ({ kind, to }) => {
    if (to === undefined) return { node: el("li", { class: "badge good" }, "Nothing runs, and nothing failed"), update: () => {} };
    const button = el("button", { type: "button", class: `badge ${kind}`, onclick: () => (to.scrollIntoView(), to.focus()) });
    return { node: el("li", {}, button), update: ({ number, isMore, says }) => text(button, `${count(number)}${isMore ? "+" : ""} ${says}`) };
  });
  show(strip, kinds.length > 0 || consumers.all().length > 0);
}

async function beat(signal) {
  const { moves, ended } = await present.refresh(signal);
  summarize();
  if (ended) besides[0].soon();
  for (const one of besides) one.beat(signal);
  return moves || besides[0].isSoon() ? OPEN_SECONDS : QUIET_SECONDS;
}

export function overview() {
  // Whoever comes back may have changed something.
  besides[0].soon();
  return { node, heading, beat, title: "cdc-export", name: "overview" };
}
