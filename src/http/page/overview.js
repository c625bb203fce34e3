// What somebody wants to know first: whose copy is fresh, and what holds the others up; then the consumers, the exports that are open or failed,
// events that nobody has taken, and the schedules. It stays as it is while something else is looked at.

import { get, getHealth } from "./api.js";
import { aside } from "./aside.js";
import { activity } from "./chart.js";
import { consumersSection } from "./consumers.js";
import { deliveriesSection } from "./deliveries.js";
import { el, keyed, show, text } from "./dom.js";
import { count } from "./figures.js";
import { presentSection } from "./present.js";
import { DATASET_SECONDS, OPEN_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { schedulesSection } from "./schedules.js";
import { isDataset, standing, urgency } from "./words.js";

// As many datasets are named in a line.
const NAMED = 3;

const present = presentSection();
const consumers = consumersSection();
const schedules = schedulesSection();
const deliveries = deliveriesSection();
const day = activity("datasets", {}, (answer) => consumers.day(answer.consumers));
const strip = el("ul", { class: "strip", "aria-label": "At a glance" });
const unreadyCount = el("summary", {});
const unreadyList = el("ul", { class: "listed" });
const unready = el("details", { class: "notice", hidden: true, role: "group", "aria-label": "Datasets that can't be exported now" }, unreadyCount, unreadyList);
const unwritable = el("p", { class: "error", role: "alert", hidden: true });
const stuck = el("p", { class: "notice", hidden: true, role: "status" });
const heading = el("h1", { class: "unseen" }, "Overview");
const node = el("div", {}, heading, unwritable, stuck, strip, unready, consumers.node, present.node, day.node, deliveries.node, schedules.node);

async function lookAtConsumers(signal) {
  const seconds = await consumers.refresh(signal);
  present.failures(consumers.all().filter(({ lastJob }) => lastJob?.status === "failed").map(({ lastJob, failedJob }) => failedJob ?? lastJob));
  summarize();
  return seconds;
}

async function lookAtDatasets(signal) {
  const items = (await get("/datasets", {}, signal)).items.filter(isDataset);
  consumers.offer(items);
  const broken = items.filter(({ ready }) => !ready);
  show(unready, broken.length > 0);
  const untracked = broken.filter(({ reason }) => reason === "not_tracked").length;
  const command = untracked === broken.length && untracked > 1 ? ". cdc-export track --all captures them" : "";
  const names = broken.length > NAMED ? "" : `: ${broken.map(({ name }) => name).join(", ")}`;
  text(unreadyCount, `${count(broken.length)} ${broken.length === 1 ? "dataset" : "datasets"} can't be exported now${names}${command}`);
  keyed(unreadyList, broken, ({ name }) => name, () => {
    const line = el("li", {});
    return { node: line, update: ({ name, problems }) => text(line, `${name}: ${problems.join("; ")}`) };
  });
  return DATASET_SECONDS;
}

// What the service itself says of its output, and of its workers: here a process that can claim no job, or that others can't.
async function lookAtHealth(signal) {
  const { output, workers } = (await getHealth(signal)).checks;
  show(unwritable, output !== undefined && output !== "ok");
  text(unwritable, `No export can be written: ${output}.`);
  show(stuck, workers !== undefined);
  text(stuck, `Workers: ${workers}.`);
  return DATASET_SECONDS;
}

const besides = [aside(lookAtConsumers, consumers.complain), aside(lookAtDatasets), aside(schedules.refresh), aside(deliveries.refresh), day, aside(lookAtHealth)];

// The strip: how many copies there are in each state, and how many jobs are open, with a way to them. A copy is of one
// dataset, for one consumer.
function summarize() {
  const { running, waiting } = present.counts();
  const copies = consumers.all().length;
  const states = [...Map.groupBy(consumers.all(), (of) => standing(of).label)].map(([label, lanes]) => {
    const [{ state }] = lanes;
    return { id: label, weight: standing(lanes[0]).weight, urgency: urgency(state), number: lanes.length, isMore: !consumers.isAll(), says: label, to: consumers.heading };
  });
  states.sort((one, other) => other.urgency - one.urgency);
  const jobs = ({ number }) => (number === 1 ? "job" : "jobs");
  const kinds = [
    { id: "copies", number: copies, isMore: !consumers.isAll(), says: copies === 1 ? "copy:" : "copies:" },
    ...states,
    { id: "running", weight: "running", ...running, says: `${jobs(running)} running`, to: present.heading },
    { id: "waiting", weight: "notice", ...waiting, says: `${jobs(waiting)} waiting`, to: present.heading },
  ].filter(({ number }) => number > 0);
  keyed(strip, kinds, ({ id }) => id, ({ weight, to }) => {
    if (!to) return label();
    const button = el("button", { type: "button", class: `badge ${weight}`, onclick: () => (to.scrollIntoView(), to.focus()) });
    return { node: el("li", {}, button), update: ({ number, isMore, says }) => text(button, `${count(number)}${isMore ? "+" : ""} ${says}`) };
  });
  show(strip, kinds.length > 0);
}

// What the pills after it count.
function label() {
  const node = el("li", { class: "label", title: "A copy is of one dataset, for one consumer" });
  return { node, update: ({ number, isMore, says }) => text(node, `${count(number)}${isMore ? "+" : ""} ${says}`) };
}

async function beat(signal) {
  const { moves, ended } = await present.refresh(signal);
  summarize();
  if (ended) for (const one of [besides[0], day]) one.soon();
  for (const one of besides) one.beat(signal);
  return moves || besides[0].isSoon() ? OPEN_SECONDS : QUIET_SECONDS;
}

export function overview() {
  // Whoever comes back may have changed something.
  besides[0].soon();
  return { node, heading, beat, title: "cdc-export", name: "overview" };
}
