// Where every consumer stands: how old its watermark is, what waits for it, and whether its next export can be exact. Those in trouble
// come first, and what somebody looks for is found among all.

import { acting, complaints, submitting } from "./actions.js";
import { get } from "./api.js";
import { starting } from "./curl.js";
import { el, keyed, once, row, set, show, table, text } from "./dom.js";
import { bytes, count, elapsed, rows, when } from "./figures.js";
import { mayMove } from "./question.js";
import { STATUS, consumerPath, standing, trouble } from "./words.js";

export const CONSUMER_COLUMNS = [
  ["Consumer", "key"],
  ["Dataset"],
  ["Watermark"],
  ["Rows waiting", "number"],
  ["Continuity"],
  ["Last export"],
  ["Start an export", "does"],
];
export const CONSUMER_SECONDS = 15;
// Of an answer, and of all.
const PAGE = 200;
const MOST = 1000;
// What they cost the database, it may have this many times over for others.
const REST = 10;
const STEP = 20;
const FIRST = { consumerId: "consumer-1", exportType: "full", format: "csv", compression: "none" };

export const keyOf = (of) => `${of.consumerId}/${of.dataset}`;

export function consumersSection() {
  const list = table("Consumers and where they stand", CONSUMER_COLUMNS);
  let shown = STEP;
  const more = el("button", { type: "button", hidden: true, onclick: () => ((shown += STEP), draw()) }, "Show more consumers");
  const empty = firstExport();
  const unknown = el("p", { class: "notice", hidden: true });
  const beyond = el("p", { class: "hint", hidden: true });
  const none = el("p", { class: "empty", hidden: true });
  const search = el("input", {
    id: "search-consumers",
    type: "search",
    placeholder: "name, dataset or trouble",
    spellcheck: "false",
    autocapitalize: "none",
    oninput: () => ((shown = STEP), draw()),
  });
  const form = el(
    "form",
    { class: "filters", role: "search", "aria-label": "Search the consumers", onsubmit: (event) => event.preventDefault() },
    el("label", { for: search.id }, "Search", search),
  );
  const heading = el("h2", { id: "consumers-heading", tabindex: "-1" }, "Consumers");
  const node = el(
    "section",
    { "aria-labelledby": heading.id },
    el("div", { class: "heading" }, heading, form),
    unknown,
    list.node,
    none,
    beyond,
    more,
    empty.node,
  );
  for (const unseen of [list.node, empty.node, form]) show(unseen, false);
  let known = [];
  let isAll = true;
  let first = "users";

  function draw() {
    const words = search.value.trim().toLowerCase();
    const has = ({ consumerId, dataset, lastJob, ...of }) =>
      [consumerId, dataset, standing(of).label, lastJob?.status ?? "", lastJob?.error?.code ?? ""].some((text) => text.toLowerCase().includes(words));
    const found = known.filter(has).sort((one, other) => trouble(other) - trouble(one));
    keyed(list.body, found.slice(0, shown), keyOf, (first) => consumerRow(CONSUMER_COLUMNS, first));
    show(list.node, found.length > 0);
    show(more, found.length > shown);
    text(more, `Show more of ${count(found.length)} consumers`);
    show(none, known.length > 0 && found.length === 0);
    text(none, `No consumer here has “${search.value.trim()}”.`);
  }

  // Gives the seconds until it is time to ask again.
  async function refresh(signal) {
    const begun = elapsed();
    const items = [];
    let pages = 0;
    let cursor = null;
    do {
      const page = await get("/consumers", { limit: PAGE, cursor }, signal);
      items.push(...page.items);
      cursor = page.nextCursor;
      pages++;
    } while (cursor !== null && items.length < MOST);
    [known, isAll] = [items, cursor === null];
    draw();
    show(form, items.length > 1);
    show(beyond, !isAll);
    text(beyond, `Only the first ${count(items.length)} by name are looked at. A consumer's own page has the address ${location.origin}/#/consumers/NAME.`);
    show(empty.node, items.length === 0);
    empty.update(first);
    return Math.max(CONSUMER_SECONDS * pages, (REST * (elapsed() - begun)) / 1000);
  }
  const complain = (error) => {
    show(unknown, error !== null);
    text(unknown, error === null ? "" : `How the consumers stand can't be told now: ${error.message}`);
  };
  // Which dataset a first export is of: the one that a call means which names none, or else the first.
  const offer = (datasets) => {
    if (!datasets.includes(first)) first = datasets[0] ?? first;
    empty.update(first);
  };
  return { node, heading, refresh, complain, offer, all: () => known, isAll: () => isAll };
}

// `columns` are all of a consumer, or all but its name.
export function consumerRow(columns, first) {
  const { consumerId, dataset } = first;
  const watermark = when();
  const none = el("span", { class: "quiet" }, "none yet");
  const waiting = el("span", {});
  const badge = el("span", { class: "badge" });
  const meaning = el("span", { class: "meaning" });
  const last = el("a", {});
  const lastAt = when();
  const never = el("span", { class: "quiet" }, "none kept");
  const unloaded = el("span", {});
  const unloadedSince = when();
  const toLoad = el("span", { class: "meaning", hidden: true, title: "Published exports that it has not acknowledged" }, unloaded, unloadedSince);
  const { node: complaint, complain } = complaints();
  const start = (exportType) =>
    acting(exportType, `export of ${dataset} for ${consumerId}`, complain, submitting(
      `/exports/${exportType}`,
      { headers: { "X-Consumer-ID": consumerId }, body: { dataset } },
      () => `started: ${exportType} export of ${dataset} for ${consumerId}`,
      () => mayMove({ exportType, consumerId, dataset }),
    ), { "data-start": exportType });
  const buttons = ["full", "incremental", "delta"].map(start);
  const cells = [
    el("a", { href: consumerPath(consumerId), title: "its page" }, consumerId),
    dataset,
    el("div", {}, watermark, none),
    waiting,
    el("div", {}, badge, meaning),
    el("div", { class: "last" }, last, lastAt, never, toLoad),
    el("div", { class: "actions" }, el("div", { class: "buttons joined" }, buttons), complaint),
  ];
  const update = (of) => {
    show(watermark, of.lastExportedAt !== null);
    show(none, of.lastExportedAt === null);
    if (of.lastExportedAt !== null) watermark.at(of.lastExportedAt);
    const known = of.rowsWaiting;
    text(waiting, known === null ? "unknown" : `${count(known)}${of.rowsWaitingCapped ? "+" : ""}`);
    const kept = of.logBytes === null ? null : `${bytes(of.logBytes)} of the change log are kept for it, ${bytes(of.logBytesMax)} may be`;
    const isFull = of.capture === "none";
    set(waiting, "title", isFull ? "nobody counts them" : known === null ? "the table can't be read now" : kept);
    set(waiting, "class", known === 0 ? "quiet" : null);
    const says = standing(of);
    text(badge, says.label);
    badge.className = `badge ${says.weight}`;
    set(badge, "title", says.meaning);
    text(meaning, of.continuity === null ? "" : says.meaning);
    for (const button of buttons.slice(1)) show(button, !isFull);
    // What would fail is still possible, and the way out stands out.
    buttons[0].classList.toggle("main", says.needs === "full");
    // Null as well of a consumer that acknowledges nothing.
    show(toLoad, of.unacknowledgedSince !== null);
    text(unloaded, notAcknowledged(of.unacknowledged));
    if (of.unacknowledgedSince !== null) unloadedSince.at(of.unacknowledgedSince);
    const job = of.lastJob;
    show(last, job !== null);
    show(lastAt, job !== null);
    show(never, job === null);
    if (job === null) return;
    set(last, "href", `#/jobs/${job.jobId}`);
    set(last, "class", `status ${STATUS[job.status]?.weight ?? ""}`);
    text(last, `${job.exportType} ${job.status}`);
    set(last, "title", job.status === "completed" ? rows(job.rowsExported) : (job.error?.code ?? null));
    lastAt.at(job.finishedAt ?? job.createdAt);
  };
  return { node: row(columns, cells.slice(-columns.length)), update };
}

// What stands before the time since then. A thousand are counted.
function notAcknowledged(exports) {
  return `${count(exports)}${exports < 1000 ? "" : "+"} not acknowledged since `;
}

// Nobody has asked for anything yet: what that is, by a button and by hand.
function firstExport() {
  const { node: complaint, complain } = complaints();
  const command = el("code", {});
  const button = el("p", { class: "buttons" });
  const node = el(
    "div",
    { class: "empty" },
    el("p", {}, "Nobody has asked for an export yet. A consumer is whoever asks: its name is all it takes."),
    button,
    complaint,
    el("p", {}, "The same by hand:"),
    el("pre", { tabindex: "0" }, command),
  );
  const update = (dataset) => {
    const { consumerId } = FIRST;
    const options = { headers: { "X-Consumer-ID": consumerId }, body: { dataset } };
    const done = () => `started: full export of ${dataset} for ${consumerId}`;
    once(button, dataset, () => acting(`Start a full export for ${consumerId}`, `of ${dataset}`, complain, submitting("/exports/full", options, done), { class: "main" }));
    // Whether it needs a key shows when there is one.
    text(command, starting({ ...FIRST, dataset }));
  };
  return { node, update };
}
