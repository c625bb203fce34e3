// How fresh the copy of every consumer is. Those in trouble come first, and what somebody looks for is found among all. A consumer of several
// datasets is one row, which opens.

import { get } from "./api.js";
import { acting, complaints, healingLanes, submitting } from "./actions.js";
import { AGAIN_SECONDS, untold } from "./aside.js";
import { sparkline } from "./chart.js";
import { copying, starting } from "./curl.js";
import { el, keyed, once, row, searching, set, show, table, text } from "./dom.js";
import { bytes, count, duration, elapsed, rows, utc, when } from "./figures.js";
import { askForExport } from "./start.js";
import { CONSUMER_ID, STATUS, consumerPath, datasetPath, isConsumerId, isFaulty, needsFull, standing, urgency } from "./words.js";

const COLUMNS = (of) => [[of, "key"], ["State", "state"], ["Behind", "number"], ["Last export", "latest"], ["Actions", "does"]];
const DAY = ["Last day", "day"];
const CONSUMER_SECONDS = 15;
// Of an answer, and of all.
const PAGE = 200;
const MOST = 1000;
// What they cost the database, it may have this many times over for others.
const REST = 10;
const STEP = 20;
// So many failures are asked for at once.
const ASKED = 5;
// As many faulty datasets of a consumer are named in its row.
const NAMED = 3;
// A job has at most so many datasets.
const MOST_DATASETS = 1000;
// A lane whose job failed by another dataset is less urgent than one that needs a full export.
const FOLLOWS = 1.5;
const FIRST = { consumerId: "consumer-1", exportType: "full", format: "csv", compression: "none" };

// The seconds until the lanes of so many answers are asked for again: soon where a table couldn't be read.
export const lanesAgain = (items, pages = 1) => (items.some(({ state }) => state === null) ? AGAIN_SECONDS : CONSUMER_SECONDS) * pages;

const laneKey = (of) => `${of.consumerId}/${of.dataset}`;
const newest = (lanes) => lanes.map(({ lastJob }) => lastJob).filter(Boolean).sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1))[0] ?? null;

// The table of a consumer's lanes, by `Dataset`, or of a dataset's, by `Consumer`.
export function laneTable(of) {
  const columns = COLUMNS(of);
  const list = table(of === "Dataset" ? "Where it stands, by dataset" : "Who exports it", columns);
  list.node.classList.add("lanes");
  const name = ({ consumerId, dataset }) =>
    of === "Dataset" ? el("a", { href: datasetPath(dataset), title: "its page" }, dataset) : el("a", { href: consumerPath(consumerId), title: "its page" }, consumerId);
  const more = el("button", { type: "button", hidden: true, onclick: () => ((shown += STEP), update(known)) });
  let shown = STEP;
  let known = [];
  const update = (lanes) => {
    known = lanes;
    keyed(list.body, byUrgency(lanes).slice(0, shown), laneKey, (lane) => laneRow(columns, lane, name(lane), {}));
    show(list.node, lanes.length > 0);
    show(more, lanes.length > shown);
    text(more, `Show more of ${count(lanes.length)} ${of === "Dataset" ? "datasets" : "consumers"}`);
  };
  return { nodes: [list.node, more], update };
}

// All lanes, or a thousand of them by the names of the consumers.
export async function allLanes(signal) {
  const items = [];
  let pages = 0;
  let cursor = null;
  do {
    const page = await get("/consumers", { limit: PAGE, cursor }, signal);
    items.push(...page.items);
    cursor = page.nextCursor;
    pages++;
  } while (cursor !== null && items.length < MOST);
  return { items: await withFailures(items, signal), isAll: cursor === null, pages };
}

const lastFailed = new Map();

// Adds the job that failed to each failing lane whose `lastJob` is open by now, or is the last job of other lanes too.
// Each such job is asked for once.
export async function withFailures(lanes, signal) {
  const keyOf = (of) => (of.lastJob?.status === "failed" ? of.lastJob.jobId : `${laneKey(of)} ${of.failingSince} ${of.failures}`);
  const failing = Map.groupBy(lanes.filter((of) => isFaulty(of.state) && of.failingSince !== null), keyOf);
  const unknown = [...failing].filter(([key, [of, ...others]]) => !lastFailed.has(key) && (others.length > 0 || !of.lastJob?.error));
  await Promise.all(
    unknown.slice(0, ASKED).map(async ([key, [of]]) => {
      const { items } = await get("/exports", { consumer: of.consumerId, dataset: of.dataset, status: "failed", limit: 1 }, signal);
      lastFailed.set(key, items[0] ?? null);
    }),
  );
  for (const [key, its] of failing) for (const of of its) of.failedJob = lastFailed.get(key) ?? null;
  return lanes;
}

// Returns true if the lane's job failed because of another dataset.
const follows = ({ state, dataset, failedJob }) => state === "failing" && ![undefined, null, dataset].includes(failedJob?.error?.dataset);

// Those that need somebody most come first, then those that are furthest behind. What failed by another one comes after that.
export const rank = (of) => urgency(of.state) - (follows(of) ? FOLLOWS : 0);

export function byUrgency(lanes) {
  return [...lanes].sort((one, other) => rank(other) - rank(one) || (other.behindSeconds ?? -1) - (one.behindSeconds ?? -1));
}

export function consumersSection() {
  const columns = COLUMNS("Consumer").toSpliced(3, 0, DAY);
  const list = table("Consumers and where they stand", columns);
  list.node.classList.add("lanes");
  let shown = STEP;
  const opened = new Set();
  const more = el("button", { type: "button", hidden: true, onclick: () => ((shown += STEP), draw()) }, "Show more consumers");
  const empty = firstExport();
  const { node: unknown, complain } = untold("How the consumers stand");
  const beyond = el("p", { class: "hint", hidden: true });
  const none = el("p", { class: "empty", hidden: true });
  const search = searching("consumers", "name, dataset or state", () => ((shown = STEP), draw()));
  const heading = el("h2", { id: "consumers-heading", tabindex: "-1" }, "Consumers");
  const node = el(
    "section",
    { "aria-labelledby": heading.id },
    el("div", { class: "heading" }, heading, search.node),
    unknown,
    list.node,
    none,
    beyond,
    more,
    empty.node,
  );
  show(empty.node, false);
  let known = [];
  let days = new Map();
  let isAll = true;
  let first = "users";
  let datasets = [];

  // Lanes by consumer, as far as somebody looks for them.
  function groups() {
    const found = search.found(known, (of) => [of.consumerId, of.dataset, standing(of).label, of.continuity ?? "", of.lastJob?.error?.code ?? ""]);
    return byUrgency([...Map.groupBy(found, ({ consumerId }) => consumerId)].map(([consumerId, lanes]) => over(consumerId, byUrgency(lanes), days.get(consumerId) ?? null)));
  }

  function draw() {
    const problems = new Map(datasets.map((of) => [of.name, of.problems]));
    for (const of of known) of.problems = problems.get(of.dataset);
    const found = groups();
    const items = found.slice(0, shown).flatMap((group) => {
      if (group.lanes.length === 1) return [{ key: `lane ${laneKey(group.lanes[0])}`, of: { ...group.lanes[0], day: group.day } }];
      const lanes = opened.has(group.consumerId) ? group.lanes.slice(0, STEP) : [];
      const rest = group.lanes.length - lanes.length;
      return [
        { key: `group ${group.consumerId}`, of: group, isOpen: lanes.length > 0 },
        ...lanes.map((of) => ({ key: `inner ${laneKey(of)}`, of })),
        ...(lanes.length > 0 && rest > 0 ? [{ key: `rest ${group.consumerId}`, of: group, rest }] : []),
      ];
    });
    keyed(list.body, items, ({ key }) => key, made);
    show(list.node, found.length > 0);
    show(more, found.length > shown);
    text(more, `Show more of ${count(found.length)} consumers`);
    show(none, known.length > 0 && found.length === 0);
    text(none, `No consumer here has “${search.words()}”.`);
  }

  function made({ key, of }) {
    const [kind] = key.split(" ");
    if (kind === "group") return groupRow(columns, of, () => (opened.has(of.consumerId) ? opened.delete(of.consumerId) : opened.add(of.consumerId), draw()));
    if (kind === "rest") return restRow(of);
    const linked = () => [el("a", { href: consumerPath(of.consumerId), title: "its page" }, of.consumerId), el("span", { class: "beside" }, of.dataset)];
    const name = el("span", { class: "named" }, el("span", {}, kind === "inner" ? of.dataset : linked()));
    const made = laneRow(columns, of, name, kind === "inner" ? { class: "inner" } : {});
    return { ...made, update: ({ of }) => made.update(of) };
  }

  // Gives the seconds until it is time to ask again.
  async function refresh(signal) {
    const begun = elapsed();
    const { items, pages, ...of } = await allLanes(signal);
    [known, isAll] = [items, of.isAll];
    draw();
    show(search.node, items.length > 1);
    show(beyond, !isAll);
    text(beyond, `Only the first ${count(items.length)} by name are looked at. A consumer's own page has the address ${location.origin}/#/consumers/NAME.`);
    show(empty.node, items.length === 0);
    empty.update(first, datasets);
    return Math.max(lanesAgain(items, pages), (REST * (elapsed() - begun)) / 1000);
  }
  // Which dataset a first export is of: the one that a call means which names none, or else the first that is ready.
  const offer = (items) => {
    datasets = items;
    const ready = items.filter((of) => of.ready).map(({ name }) => name);
    if (!ready.includes(first)) first = ready[0] ?? items[0]?.name ?? first;
    empty.update(first, datasets);
    if (known.length > 0) draw();
  };
  // The last day of each consumer that has exports in it.
  const day = (items) => {
    days = new Map(items.map((of) => [of.name, of]));
    if (known.length > 0) draw();
  };
  return { node, heading, refresh, complain, offer, day, all: () => known, isAll: () => isAll };
}

// A consumer over its lanes, the most urgent of which is the first.
function over(consumerId, lanes, day) {
  const known = lanes.map(({ behindSeconds }) => behindSeconds).filter((seconds) => seconds !== null);
  const isUnknown = known.length === 0 || lanes.some(({ state }) => state === null);
  return {
    consumerId,
    lanes,
    day,
    state: lanes[0].state,
    behindSeconds: isUnknown ? null : Math.max(...known),
    lastJob: newest(lanes),
  };
}

function groupRow(columns, { consumerId }, toggle) {
  const facts = laneFacts(columns, groupReason);
  const button = el("button", { type: "button", class: "opens", "aria-label": `datasets of ${consumerId}`, onclick: toggle });
  const number = el("span", { class: "beside" });
  const name = el("span", { class: "named" }, button, el("span", {}, el("a", { href: consumerPath(consumerId), title: "its page" }, consumerId), number));
  const { node: complaint, complain } = complaints();
  const does = el("div", { class: "actions" });
  // The exports that the most urgent datasets need: of one by the form, of several as one job.
  let now = [];
  const way = (lanes) => {
    if (lanes.length === 0) return complaint;
    return [lanes.length === 1 ? exporting(lanes[0], () => now[0], true).button : healingLanes(consumerId, lanes, newest(lanes), complain), complaint];
  };
  const update = ({ of, isOpen }) => {
    const faulty = of.lanes.filter(({ state }) => isFaulty(state) && ![null, "not_tracked"].includes(state));
    const needy = faulty.filter(needsFull).slice(0, MOST_DATASETS);
    now = needy.length > 0 ? needy : faulty.length === 1 ? faulty : [];
    once(does, JSON.stringify(now.map((lane) => [lane.dataset, lane.state])), () => (complain(null), way(now)));
    set(button, "aria-expanded", String(isOpen));
    text(number, `${count(of.lanes.length)} datasets`);
    facts.update(of);
    set(node, "data-state", of.state);
  };
  const node = row(columns, [name, ...facts.cells, does]);
  return { node, update };
}

function restRow({ consumerId }) {
  const link = el("a", { href: consumerPath(consumerId) });
  const node = el("tr", { role: "row", class: "inner" }, el("td", { role: "cell", class: "key", colspan: 6 }, link));
  return { node, update: ({ rest }) => text(link, `${count(rest)} more datasets of ${consumerId}`) };
}

// The cells of a lane or a consumer: state and its reason, how far behind, its last day and the last export.
function laneFacts(columns, reasonOf) {
  const badge = el("span", { class: "badge" });
  const meaning = el("span", { class: "meaning" });
  const behind = el("span", {});
  const last = el("a", {});
  const lastAt = when();
  // By which its loader knows how far it is.
  const number = el("span", { class: "beside" });
  const never = el("span", { class: "quiet" }, "none kept");
  const unloaded = el("span", {});
  const unloadedSince = when();
  const toLoad = el("span", { class: "meaning", hidden: true, title: "Published exports that it has not acknowledged" }, unloaded, unloadedSince);
  const day = columns.includes(DAY) ? sparkline() : null;
  const cells = [el("div", {}, badge, meaning), behind, ...(day ? [day.node] : []), el("div", { class: "last" }, last, number, lastAt, never, toLoad)];
  const update = (of) => {
    const says = standing(of);
    text(badge, says.label);
    badge.className = `badge ${says.weight}`;
    set(badge, "title", of.state === "fresh" ? "No change waits longer than fresh_within, or twice the usual time between its exports" : null);
    const why = el("span", {}, reasonOf(of));
    const links = [...why.querySelectorAll("a")].map((link) => link.getAttribute("href"));
    once(meaning, [why.textContent, ...links].join(" "), () => [...why.childNodes]);
    const isKnown = of.behindSeconds !== null && ![null, "gone"].includes(of.state);
    text(behind, isKnown ? duration(of.behindSeconds) : "–");
    set(behind, "class", of.behindSeconds === 0 ? "quiet" : null);
    const kept = of.logBytes ? `${bytes(of.logBytes)} of the change log are kept for it, ${bytes(of.logBytesMax)} may be` : null;
    const watermark = of.lastExportedAt ? `watermark: ${utc(of.lastExportedAt)}` : null;
    const facts = [isKnown ? null : "unknown", watermark, kept, of.asOf ? `as of ${utc(of.asOf)}` : null];
    set(behind, "title", facts.filter(Boolean).join("; ") || null);
    // Null as well of a consumer that acknowledges nothing.
    day?.update(of.day ?? null);
    const since = of.unacknowledgedSince ?? null;
    show(toLoad, since !== null);
    text(unloaded, notAcknowledged(of.unacknowledged));
    if (since !== null) unloadedSince.at(since);
    const job = of.lastJob;
    show(last, job !== null);
    show(lastAt, job !== null);
    show(number, (job?.number ?? null) !== null && day === null);
    text(number, `number ${count(job?.number)}`);
    show(never, job === null);
    if (job === null) return;
    set(last, "href", `#/jobs/${job.jobId}`);
    set(last, "class", `status ${STATUS[job.status]?.weight ?? ""}`);
    text(last, `${job.exportType} ${job.status}`);
    set(last, "title", job.status === "completed" ? rows(job.rowsExported) : (job.error?.code ?? null));
    lastAt.at(job.finishedAt ?? job.createdAt);
  };
  return { cells, update };
}

// How many lanes are in each state.
export function stateCounts(lanes) {
  return [...Map.groupBy(lanes, (lane) => standing(lane).label)].map(([label, its]) => `${count(its.length)} ${label}`);
}

// The states of a consumer's datasets, the faulty ones with the first of their names. Of a single one the whole reason.
function groupReason({ lanes }) {
  const faulty = lanes.filter(({ state }) => isFaulty(state) || state === "gone");
  const since = lanes.map(({ failingSince }) => failingSince).filter(Boolean).sort()[0];
  const others = stateCounts(lanes.filter((lane) => !faulty.includes(lane)));
  if (faulty.length === 0) return others.length > 1 ? others.join(", ") : "";
  const isOne = faulty.length === 1;
  const named = faulty.slice(0, NAMED).flatMap((lane, at) => {
    const why = isOne ? null : follows(lane) ? "failed with it" : lane.state === "failing" ? failed(lane.lastJob) ?? failed(lane.failedJob) : reasonWord(lane);
    return [at === 0 ? ": " : ", ", el("a", { href: datasetPath(lane.dataset) }, lane.dataset), ...(why ? [" (", why, ")"] : [])];
  });
  const more = faulty.length > NAMED && ` and ${count(faulty.length - NAMED)} more`;
  const first = since && !isOne && ["; the first failed ", when(since)];
  const whole = isOne && [". ", laneReason(faulty[0])];
  return [stateCounts(faulty).join(", "), ...named, more, first, others.length > 0 && `; ${others.join(", ")}`, whole].flat(2);
}

// The word of why a lane needs a full export, or is not tracked.
function reasonWord({ state, continuity }) {
  return ["needs_full", "not_tracked"].includes(state) && continuity !== null ? el("span", { class: "code" }, continuity) : null;
}

// A sentence where there is something to say of a state, and since when and by what its exports fail.
function laneReason(of) {
  const { meaning } = standing(of);
  if (of.state === "failing" && of.failures > 0) return failure(of);
  return of.failingSince === null || !isFaulty(of.state) ? meaning : [meaning, " ", ...failure(of)];
}

function failure(of) {
  const { consumerId, dataset, failures, failingSince, lastJob, failedJob } = of;
  const first = failures === 1 ? "The last export failed " : `${count(failures)} exports in a row failed, the first `;
  const why = failed(lastJob) ?? failed(failedJob) ?? el("a", { href: `#/exports?${new URLSearchParams({ consumer: consumerId, dataset, status: "failed" })}` }, "why");
  const by = follows(of) && ` in ${failedJob.error.dataset}`;
  return failingSince === null ? why : [first, when(failingSince), ": ", why, by];
}

// The code of an export that failed, which leads to it.
function failed(job) {
  if (!job?.error) return null;
  return el("a", { class: "code", href: `#/jobs/${job.jobId}`, title: job.error.detail }, job.error.code);
}

// `now` gives the lane as it is when somebody clicks.
function exporting(lane, now, isOfSeveral = false) {
  const button = el("button", { type: "button", onclick: () => askForExport(() => {}, now()) }, el("span", {}), el("span", { class: "unseen" }, ` ${lane.dataset} for ${lane.consumerId}`));
  // The way out stands out.
  const update = (of) => {
    text(button.firstChild, needsFull(of) ? "Full export…" : "Export…");
    button.classList.toggle("main", needsFull(of));
  };
  update(lane);
  if (isOfSeveral) set(button, "title", `of ${lane.dataset}`);
  return { button, update };
}

function laneRow(columns, lane, name, attributes) {
  const facts = laneFacts(columns, laneReason);
  let now = lane;
  const { button, update: label } = exporting(lane, () => now);
  const update = (of) => {
    now = of;
    facts.update(of);
    label(of);
    show(button, of.state !== "gone");
    set(node, "data-state", of.state);
  };
  const node = row(columns, [name, ...facts.cells, button], attributes);
  return { node, update };
}

// What stands before the time since then. A thousand are counted.
function notAcknowledged(exports) {
  return `${count(exports)}${exports < 1000 ? "" : "+"} not acknowledged since `;
}

// Nobody has asked for anything yet: the three steps to the first file, by a button and by hand.
function firstExport() {
  const { node: complaint, complain } = complaints();
  const command = el("code", {});
  const byHand = el("div", { class: "command" }, el("h3", {}, "The same by hand"), el("pre", { tabindex: "0" }, command), copying("start it", () => command.textContent));
  const track = el("pre", { tabindex: "0" }, el("code", {}));
  const button = el("p", { class: "buttons" });
  const consumer = el("input", { id: "first-consumer", value: FIRST.consumerId, maxlength: 128, autocomplete: "off", autocapitalize: "none", spellcheck: "false", oninput: () => edited() });
  const label = el("label", { for: consumer.id }, "Start the first export. A consumer is whoever asks for one: any name makes it.", consumer);
  let first = null;
  // The third step is of the dataset and the consumer as they are now.
  function drawThird() {
    const consumerId = consumer.value.trim();
    const isName = isConsumerId(consumerId);
    const options = { headers: { "X-Consumer-ID": consumerId }, body: { dataset: first } };
    const done = () => `started: full export of ${first} for ${consumerId}`;
    once(button, `${first} ${consumerId}`, () => (isName ? acting(`Start a full export of ${first} for ${consumerId}`, "", complain, submitting("/exports/full", options, done), { class: "main" }) : []));
    show(byHand, isName);
    // Whether it needs a key shows when there is one.
    text(command, starting({ ...FIRST, consumerId, dataset: first }));
  }
  function edited() {
    const isName = isConsumerId(consumer.value.trim());
    set(consumer, "aria-invalid", !isName && "true");
    complain(isName ? null : new Error(CONSUMER_ID));
    drawThird();
  }
  const tables = el("p", {});
  const capture = el("p", {});
  const steps = [[tables], [capture, track], [el("p", {}, label), button, complaint, byHand]];
  const items = steps.map((children, at) => el("li", { "data-step": at + 1 }, children));
  const node = el("div", { class: "empty" }, el("p", {}, "Nobody has asked for an export yet."), el("ol", { class: "steps" }, items));
  const update = (dataset, datasets) => {
    const tracked = datasets.filter(({ reason }) => reason !== "not_tracked");
    text(tables, datasets.length > 0 ? `${count(datasets.length)} ${datasets.length === 1 ? "table is a dataset" : "tables are datasets"}.` : "Name a table in the dataset file: cdc-export datasets add TABLE");
    const whose = tracked.length < datasets.length ? `Changes of ${count(tracked.length)} of them` : datasets.length === 1 ? "Its changes" : "Their changes";
    text(capture, tracked.length > 0 ? `${whose} are captured.` : "Let triggers capture their changes, as the tables' owner:");
    show(track, tracked.length === 0);
    text(track.firstChild, "cdc-export track --all");
    for (const [at, isDone] of [datasets.length > 0, tracked.length > 0, false].entries()) items[at].classList.toggle("done", isDone);
    first = dataset;
    drawThird();
  };
  return { node, update };
}
