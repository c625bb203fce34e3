// A job as a row of a table: its status as it moves, its figures, and what may be done with it.

import { asked, isLeaving } from "./api.js";
import { actions } from "./actions.js";
import { el, row, say, set, show, text } from "./dom.js";
import { about, bytes, count, duration, now, rows, when } from "./figures.js";
import { CANCELLING, STATUS, consumerPath, datasetsOf, isOpen, title } from "./words.js";

const COLUMNS = [
  ["Status", "state"],
  ["Export", "key"],
  ["Consumer"],
  ["Asked for"],
  ["Rows", "number"],
  ["Rows/s", "number rate"],
  ["Took", "number took"],
  ["Size", "number"],
  ["Actions", "does"],
];

// The columns of all consumers' exports. Those of one consumer have their numbers instead of its name.
export function columns(isOneConsumers) {
  return isOneConsumers ? COLUMNS.with(2, ["Number", "ordinal"]) : COLUMNS;
}

export const keyOf = (job) => job.jobId;

// Whether something has ended since the last look. What was asked for here is said; of all others that would be chatter.
export function tellEnds(items, seen) {
  if (seen === null) return false;
  const ended = items.filter((job) => !isOpen(job) && seen.get(job.jobId) !== job.status);
  const own = ended.filter((job) => asked.has(job.jobId));
  if (own.length === 1) {
    const [job] = own;
    say(`${job.status}: ${title(job)}${job.status === "completed" ? `, ${rows(job.rowsExported)}` : ""}`);
  } else if (own.length > 1) say(`${own.length} of your exports have ended`);
  return ended.length > 0;
}

// A percentage says something as long as rows are written: before and after, the phase does.
const moves = (job) => job.status === "processing" && job.rowsExported > 0 && job.phase !== "publishing";

// Rows a second since it began, and the seconds that are left if it goes on like that.
export function speed(job) {
  if (job.startedAt === null || job.status === "pending") return { rate: null, left: null, took: null };
  const took = job.durationSeconds ?? Math.max(0, (now() - Date.parse(job.startedAt)) / 1000);
  const rate = took > 0 && job.rowsExported > 0 ? job.rowsExported / took : null;
  const going = moves(job) && job.progress > 0 && job.progress < 100;
  return { rate, took, left: going ? (took * (100 - job.progress)) / job.progress : null };
}

export function progressBar() {
  const bar = el("progress", { max: "100" });
  const percent = el("span", { class: "percent" });
  const node = el("span", { class: "progress" }, bar, percent);
  const update = (job) => {
    show(node, job.status === "processing");
    if (job.status !== "processing") return;
    set(bar, "aria-label", `progress of the ${title(job)}`);
    if (bar.value !== job.progress) bar.value = job.progress;
    text(percent, moves(job) || !job.phase ? `${job.progress} %` : job.phase);
  };
  return { node, update };
}

export function statusBadge() {
  const node = el("span", { class: "badge" });
  const update = (job) => {
    const leaves = isLeaving(job);
    const word = job.skipped ? "skipped" : job.status;
    const says = leaves ? CANCELLING : STATUS[word];
    text(node, leaves ? "cancelling…" : word);
    node.className = `badge ${says?.weight ?? ""}`;
    set(node, "title", says?.meaning);
  };
  return { node, update };
}

// `columns` are those of the table. A job of several datasets has no number and no digest: its exports have them.
export function jobRow(columns, job) {
  const status = statusBadge();
  const bar = progressBar();
  const why = el("span", { class: "meaning code" });
  const askedFor = when(job.createdAt);
  const number = el("span", {});
  const digest = el("span", { class: "meaning code" });
  const numbered = el("div", {}, number, digest);
  const [written, rate, took, size] = [1, 2, 3, 4].map(() => el("span", {}));
  const left = el("span", { class: "meaning" });
  const does = actions({ changed: () => update(known) });
  const link = el("a", { href: `#/jobs/${job.jobId}` });
  let known = job;
  const packed = job.compression === "none" ? job.format : `${job.format}, ${job.compression}`;
  const whose = job.consumerId === null ? el("span", { class: "quiet" }, "ad hoc")
    : el("a", { href: consumerPath(job.consumerId) }, job.consumerId);
  const cells = [
    el("div", {}, status.node, bar.node, why),
    el("div", {}, link, el("span", { class: "meaning" }, packed)),
    columns[2][0] === "Number" ? numbered : whose,
    askedFor,
    written,
    rate,
    el("div", {}, took, left),
    size,
    does.node,
  ];
  const node = row(columns, cells, { class: "export", "data-job": job.jobId });
  const update = (of) => {
    known = of;
    text(link, `${of.exportType} ${datasetsOf(of)}`);
    status.update(of);
    bar.update(of);
    text(number, count(of.number));
    text(digest, of.digest?.slice(0, 8) ?? "");
    set(digest, "title", of.digest && `The digest of its manifest: ${of.digest}`);
    text(why, of.error?.code ?? "");
    set(why, "title", of.error?.detail);
    const is = speed(of);
    const some = of.status !== "pending" && (isOpen(of) || of.status === "completed");
    text(written, some ? count(of.rowsExported) : "–");
    text(rate, some && is.rate !== null ? count(Math.round(is.rate)) : "–");
    text(took, is.took === null ? "–" : duration(is.took));
    text(left, is.left === null ? "" : `${about(is.left)} left`);
    text(size, some && !of.skipped ? bytes(of.bytesWritten) : "–");
    for (const [cell, has] of [[numbered, of.number], [written, some], [took.parentNode, is.took !== null], [size, some]]) cell.classList.toggle("none", !has);
    does.update(of);
    set(node, "data-status", of.status);
  };
  return { node, update, gone: () => does.gone(known) };
}
