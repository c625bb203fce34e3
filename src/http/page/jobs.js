// The exports, newest first: those that are open move, the others stay as they ended.

import { Problem, asked, get } from "./api.js";
import { actions } from "./actions.js";
import { chart } from "./chart.js";
import { el, keyed, row, say, set, show, table, text } from "./dom.js";
import { bytes, count, duration, now, rows, when } from "./figures.js";
import { paged } from "./pages.js";
import { wake } from "./pulse.js";
import { STATUS, isOpen, title } from "./words.js";

const CHARTED = 40;
// Where one export ends after the other, what follows from an end is asked for now and then.
export const SOON_MS = 2000;
const COLUMNS = [
  ["Status"],
  ["Export", "key"],
  ["Consumer"],
  ["Asked for"],
  ["Rows", "number"],
  ["Rows/s", "number"],
  ["Took", "number"],
  ["Size", "number"],
  ["Actions", "does"],
];
const keyOf = (job) => job.jobId;
const CHOICES = {
  status: ["pending", "processing", "completed", "failed", "cancelled"],
  exportType: ["full", "incremental", "delta"],
};

// `filter` is what the address says, `onFilter` writes another one into it.
export function jobsSection(filter, onFilter) {
  const list = table("Exports, newest first", COLUMNS);
  const pages = paged("/exports", 25, keyOf);
  const more = el("button", { type: "button", hidden: true, onclick: () => (pages.more(), wake()) }, "Show older exports");
  const empty = el("p", { class: "empty", hidden: true });
  const drawn = chart();
  const filters = filterForm(filter, onFilter);
  const heading = el("h2", { id: "jobs-heading" }, "Exports");
  const node = el(
    "section",
    { "aria-labelledby": "jobs-heading" },
    el("div", { class: "heading" }, heading, filters.node),
    drawn.node,
    list.node,
    empty,
    more,
  );
  show(list.node, false);
  let seen = null;
  let chartAt = 0;
  let chartedAt = 0;

  async function refresh(signal) {
    let items;
    try {
      items = await pages.read(filter, signal);
    } catch (error) {
      // The address has a filter that is none.
      if (!(error instanceof Problem) || error.status !== 400) throw error;
      show(list.node, false);
      show(empty, true);
      text(empty, error.message);
      return { moves: false, ended: false };
    }
    keyed(list.body, items, keyOf, jobRow);
    show(list.node, items.length > 0);
    show(more, !pages.ends());
    const filtered = Object.values(filter).some(Boolean);
    show(empty, items.length === 0);
    text(empty, filtered ? "No export is like that. Take a filter away to see others." : "No export yet: New export starts one.");
    const ended = tellEnds(items, seen);
    seen = new Map(items.map((job) => [job.jobId, job.status]));
    if (ended) chartAt = Math.min(chartAt, chartedAt + SOON_MS);
    if (now() >= chartAt) {
      [chartAt, chartedAt] = [Infinity, now()];
      // What failed has no rows to compare.
      const completed = filter.status && filter.status !== "completed" ? [] :
        (await get("/exports", { ...filter, status: "completed", limit: CHARTED }, signal)).items;
      drawn.update(completed);
    }
    return { moves: items.some(isOpen) || chartAt < Infinity, ended };
  }
  return { node, heading, refresh, datasets: filters.datasets };
}

// Whether something has ended since the last look. What was asked for here is said; of all others that would be chatter.
function tellEnds(items, seen) {
  if (seen === null) return false;
  const ended = items.filter((job) => !isOpen(job) && seen.get(job.jobId) !== job.status);
  const own = ended.filter((job) => asked.has(job.jobId));
  if (own.length === 1) {
    const [job] = own;
    say(`${job.status}: ${title(job)}${job.status === "completed" ? `, ${rows(job.rowsExported)}` : ""}`);
  } else if (own.length > 1) say(`${own.length} of your exports have ended`);
  return ended.length > 0;
}

// Rows a second since it began, and the seconds that are left if it goes on like that.
export function speed(job) {
  if (job.startedAt === null || job.status === "pending") return { rate: null, left: null, took: null };
  const took = job.durationSeconds ?? Math.max(0, (now() - Date.parse(job.startedAt)) / 1000);
  const rate = took > 0 && job.rowsExported > 0 ? job.rowsExported / took : null;
  const going = job.status === "processing" && job.progress > 0 && job.progress < 100;
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
    text(percent, `${job.progress} %`);
  };
  return { node, update };
}

export function statusBadge() {
  const node = el("span", { class: "badge" });
  const update = (job) => {
    text(node, job.status);
    node.className = `badge ${STATUS[job.status]?.weight ?? ""}`;
    set(node, "title", STATUS[job.status]?.meaning);
  };
  return { node, update };
}

function jobRow(job) {
  const status = statusBadge();
  const bar = progressBar();
  const why = el("span", { class: "meaning" });
  const asked = when(job.createdAt);
  const [written, rate, took, size] = [1, 2, 3, 4].map(() => el("span", {}));
  const left = el("span", { class: "meaning" });
  const does = actions();
  const packed = job.compression === "none" ? job.format : `${job.format}, ${job.compression}`;
  const whose = job.consumerId === null ? el("span", { class: "quiet" }, "ad hoc")
    : el("a", { href: `#/?consumer=${encodeURIComponent(job.consumerId)}` }, job.consumerId);
  const cells = [
    el("div", {}, status.node, bar.node, why),
    el("div", {}, el("a", { href: `#/jobs/${job.jobId}` }, `${job.exportType} ${job.dataset}`), el("span", { class: "meaning" }, packed)),
    whose,
    asked,
    written,
    rate,
    el("div", {}, took, left),
    size,
    does.node,
  ];
  const node = row(COLUMNS, cells, { "data-job": job.jobId });
  const update = (of) => {
    status.update(of);
    bar.update(of);
    text(why, of.error?.code ?? "");
    set(why, "title", of.error?.detail);
    const is = speed(of);
    const some = of.status !== "pending" && (isOpen(of) || of.status === "completed");
    text(written, some ? count(of.rowsExported) : "–");
    text(rate, some && is.rate !== null ? count(Math.round(is.rate)) : "–");
    text(took, is.took === null ? "–" : duration(is.took));
    text(left, is.left === null ? "" : `${duration(Math.max(1, is.left))} left`);
    text(size, some ? bytes(of.bytesWritten) : "–");
    does.update(of);
    set(node, "data-status", of.status);
  };
  return { node, update };
}

// The filters are the address's: what it shows can be sent to somebody.
function filterForm(filter, onFilter) {
  const changed = (name) => (event) => onFilter({ ...filter, [name]: event.target.value.trim() });
  const choice = (name, label, values) => {
    const options = values.map((value) => el("option", { value }, value));
    const select = el("select", { id: `filter-${name}`, onchange: changed(name) }, el("option", { value: "" }, "all"), options);
    // One that isn't known (yet) is shown all the same: it is what is asked for.
    if (filter[name] && !values.includes(filter[name])) select.append(el("option", { value: filter[name] }, filter[name]));
    select.value = filter[name] ?? "";
    return el("label", { for: select.id }, label, select);
  };
  const consumer = el("input", {
    id: "filter-consumer",
    type: "search",
    placeholder: "all",
    value: filter.consumer ?? "",
    spellcheck: "false",
    autocapitalize: "none",
    onchange: changed("consumer"),
  });
  const dataset = choice("dataset", "Dataset", []);
  const node = el(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the exports", onsubmit: (event) => event.preventDefault() },
    el("label", { for: consumer.id }, "Consumer", consumer),
    choice("status", "Status", CHOICES.status),
    choice("exportType", "Type", CHOICES.exportType),
    dataset,
    Object.values(filter).some(Boolean) && el("a", { href: "#/", class: "button" }, "All exports"),
  );
  const datasets = (names) => {
    const select = dataset.querySelector("select");
    const there = new Set(Array.from(select.options, (option) => option.value));
    select.append(...names.filter((name) => !there.has(name)).map((name) => el("option", { value: name }, name)));
  };
  return { node, datasets };
}
