// Where every consumer stands: how old its watermark is, what waits for it, and whether its next export can be exact.

import { acting, complaints, submitting } from "./actions.js";
import { starting } from "./curl.js";
import { el, keyed, row, set, show, table, text } from "./dom.js";
import { count, rows, when } from "./figures.js";
import { paged } from "./pages.js";
import { wake } from "./pulse.js";
import { STATUS, continuity } from "./words.js";

const COLUMNS = [
  ["Consumer", "key"],
  ["Dataset"],
  ["Watermark"],
  ["Rows waiting", "number"],
  ["Continuity"],
  ["Last export"],
  ["Start an export", "does"],
];
const FIRST = { consumerId: "consumer-1", exportType: "full", dataset: "users", format: "csv", compression: "none" };

const keyOf = (of) => `${of.consumerId}/${of.dataset}`;

export function consumersSection() {
  const list = table("Consumers and where they stand", COLUMNS);
  const pages = paged("/consumers", 50, keyOf);
  const more = el("button", { type: "button", hidden: true, onclick: () => (pages.more(), wake()) }, "Show more consumers");
  const empty = firstExport();
  const unknown = el("p", { class: "notice", hidden: true });
  const node = el(
    "section",
    { "aria-labelledby": "consumers-heading" },
    el("h2", { id: "consumers-heading" }, "Consumers"),
    unknown,
    list.node,
    more,
    empty.node,
  );
  show(list.node, false);
  show(empty.node, false);

  async function refresh(signal) {
    const items = await pages.read({}, signal);
    keyed(list.body, items, keyOf, consumerRow);
    show(list.node, items.length > 0);
    show(more, !pages.ends());
    show(empty.node, items.length === 0);
    if (items.length === 0) empty.update();
  }
  const complain = (error) => {
    show(unknown, error !== null);
    text(unknown, error === null ? "" : `How the consumers stand can't be told now: ${error.message}`);
  };
  return { node, refresh, complain };
}

function consumerRow(first) {
  const { consumerId, dataset } = first;
  const watermark = when();
  const none = el("span", { class: "quiet" }, "none yet");
  const waiting = el("span", {});
  const badge = el("span", { class: "badge" });
  const meaning = el("span", { class: "meaning" });
  const last = el("a", {});
  const lastAt = when();
  const never = el("span", { class: "quiet" }, "none kept");
  const { node: complaint, complain } = complaints();
  const start = (exportType) =>
    acting(exportType, `export of ${dataset} for ${consumerId}`, complain, submitting(
      `/exports/${exportType}`,
      { headers: { "X-Consumer-ID": consumerId }, body: { dataset } },
      () => `started: ${exportType} export of ${dataset} for ${consumerId}`,
    ), { "data-start": exportType });
  const buttons = ["full", "incremental", "delta"].map(start);
  const cells = [
    el("a", { href: `#/?consumer=${encodeURIComponent(consumerId)}`, title: "its exports" }, consumerId),
    dataset,
    el("div", {}, watermark, none),
    waiting,
    el("div", {}, badge, meaning),
    el("div", { class: "last" }, last, lastAt, never),
    el("div", { class: "actions" }, el("div", { class: "buttons joined" }, buttons), complaint),
  ];
  const update = (of) => {
    show(watermark, of.lastExportedAt !== null);
    show(none, of.lastExportedAt === null);
    if (of.lastExportedAt !== null) watermark.at(of.lastExportedAt);
    const known = of.rowsWaiting;
    text(waiting, known === null ? "unknown" : `${count(known)}${of.rowsWaitingCapped ? "+" : ""}`);
    set(waiting, "title", known === null ? "the table can't be read now" : null);
    set(waiting, "class", known === 0 ? "quiet" : null);
    const says = continuity(of.continuity);
    text(badge, says.label);
    badge.className = `badge ${says.weight}`;
    set(badge, "title", says.meaning);
    text(meaning, of.continuity === null ? "" : says.meaning);
    // What would fail is still possible, and the way out stands out.
    buttons[0].classList.toggle("main", says.needs === "full");
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
  return { node: row(COLUMNS, cells), update };
}

// Nobody has asked for anything yet: what that is, by a button and by hand.
function firstExport() {
  const { node: complaint, complain } = complaints();
  const command = el("code", {});
  const node = el(
    "div",
    { class: "empty" },
    el("p", {}, "Nobody has asked for an export yet. A consumer is whoever asks: its name is all it takes."),
    el("p", { class: "buttons" }, acting(
      `Start a full export for ${FIRST.consumerId}`,
      "",
      complain,
      submitting("/exports/full", { headers: { "X-Consumer-ID": FIRST.consumerId } }, () => `started: full export for ${FIRST.consumerId}`),
      { class: "main" },
    )),
    complaint,
    el("p", {}, "The same by hand:"),
    el("pre", { tabindex: "0" }, command),
  );
  // Whether it needs a key shows when there is one.
  return { node, update: () => text(command, starting(FIRST)) };
}
